"""What becomes of a sleep that a stop has interrupted: the kernel goes on with it as restart_syscall(2).

A debugger, a SIGSTOP or a freeze of ours does that to poll, to nanosleep and to a futex wait with a timeout. The
arguments stay in their registers; where the thread sleeps in the kernel tells which call it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from types import MappingProxyType

NUMBERS = MappingProxyType({"x86_64": 219, "aarch64": 128})  # restart_syscall
X86_64 = NUMBERS["x86_64"]

_PLACES = (
    (re.compile(r"poll_schedule_timeout|do_sys_poll|do_restart_poll"), "poll"),
    (re.compile(r"futex_"), "futex"),
    (re.compile(r"nanosleep"), "clock_nanosleep"),
)


def interrupted(places: Iterable[str]) -> str:
    """Return the name of the call that goes on, empty if unknown; `places` are the kernel's functions, innermost first.

    Its wchan alone will do.
    """
    for place in places:
        for pattern, call in _PLACES:
            if pattern.search(place):
                return call
    return ""
