"""Confines a child of our own as gdb is confined, and has it try what it must not be able to do."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

from autopsy.doctor.checks import Check, lacks, note, ok
from autopsy.errors import NotStored
from autopsy.files.scratch_place import scratch_place
from autopsy.linux.confine import landlock
from autopsy.linux.confine.confined import AnswerPipe, Died, TooSlow, WorkRaised, run
from autopsy.linux.confine.sandbox import Confined, Sandbox, python_tree

SECONDS = 10.0
SANDBOX = "sandbox"
FORBIDDEN = "/etc/passwd"  # everybody's to read, and not of the system's libraries


def try_sandbox() -> Check:
    """Return whether a stranger's bytes would be read where they can do nothing."""
    try:
        with tempfile.TemporaryDirectory(prefix="autopsy-doctor-", dir=scratch_place()) as scratch:
            box = Sandbox(scratch=Path(scratch), readable=python_tree())
            seen = run(_look_around, box, seconds=SECONDS, hear=lambda _name, _data: b"").decode()
    except (Died, TooSlow, WorkRaised) as error:
        return lacks(SANDBOX, f"a confined child failed: {error}", "without it no core is examined on this host")
    except (NotStored, OSError) as error:
        return lacks(SANDBOX, f"no folder for it: {error}", "set TMPDIR to a folder that you may write to")
    if seen:
        return note(SANDBOX, seen, "gdb reads the core all the same, behind fewer walls")
    apart = ", seccomp and a user of its own hold" if os.geteuid() == 0 else " and seccomp hold"
    return ok(SANDBOX, f"Landlock (ABI {landlock.version()}){apart}")


def _look_around(confined: Confined, _: AnswerPipe) -> bytes:
    """Return in words what is lacking, and what could be done that must not be."""
    holes = [
        name
        for name, attempt in (("it can read /etc/passwd", _read), ("it can make a socket", _connect))
        if _succeeds(attempt)
    ]
    return "; ".join((*confined.lacking, *holes)).encode()


def _succeeds(attempt: Callable[[], None]) -> bool:
    try:
        attempt()
    except OSError:
        return False
    return True


def _read() -> None:
    os.close(os.open(FORBIDDEN, os.O_RDONLY | os.O_CLOEXEC))


def _connect() -> None:
    socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()
