"""Tells systemd how the watch goes: ready, alive as long as rounds end, and what it sees."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping

from autopsy.text import printable
from autopsy.watch.model import Round

MOST_STATUS = 200


class ServiceNotifier:
    """Says to the socket that systemd names what sd_notify(3) says; where it names none, to nobody.

    Nobody waits: a message that is not taken is lost.
    """

    def __init__(
        self, environment: Mapping[str, str] = os.environ, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._clock = clock
        self._ready = False
        self._status = ""
        self._pinged = -float("inf")
        ours = environment.get("WATCHDOG_PID", "") in {"", str(os.getpid())}
        given = environment.get("WATCHDOG_USEC", "")
        self._every = int(given) / 3e6 if ours and given.isdecimal() else 0.0

    def round_ended(self, last: Round) -> None:
        """Say that a round has ended, a third of the watchdog's time after the last word at the earliest.

        The first makes the service ready.
        """
        if not self._ready:
            self._ready = True
            self._say("READY=1")
        status = printable(_in_words(last), MOST_STATUS)  # a VM's name must not be read as a message of its own
        if status != self._status:
            self._status = status
            self._say(f"STATUS={status}")
        if self._every and self._clock() >= self._pinged + self._every:
            self._pinged = self._clock()
            self._say("WATCHDOG=1")

    def stopping(self) -> None:
        """Say that the end has begun."""
        self._say("STOPPING=1")

    def _say(self, words: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sending,
        ):
            sending.sendto(words.encode(), address)


def _in_words(last: Round) -> str:
    stalled = ", ".join(vm.name for vm in last.vms if vm.stalled is not None)
    return f"{len(last.vms)} VMs" + (f"; stalled: {stalled}" if stalled else ", none stalled")
