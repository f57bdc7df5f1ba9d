"""Asks a VM's QMP monitor through libvirtd, which holds it, by way of virsh."""

from __future__ import annotations

import json
from collections.abc import Mapping

from autopsy.capture import programs, words
from autopsy.capture.monitor import (
    MOST_BYTES,
    Answered,
    Busy,
    Closed,
    Greeted,
    NoAnswer,
    NotAsked,
    Refused,
    Reply,
    Silent,
    Welcome,
    plain,
)
from autopsy.capture.readers import Cut, Unreadable

CONNECTION = "qemu:///system"
NOTE = "asked through libvirtd: it marks the domain tainted (custom-monitor)"


class VirshMonitor:
    """The monitor of a libvirt domain. libvirtd has said qmp_capabilities long ago."""

    def __init__(self, domain: str) -> None:
        self._domain = domain

    @property
    def monitor(self) -> str:
        """Return how the monitor is reached."""
        return f"virsh -c {CONNECTION} qemu-monitor-command"

    @property
    def negotiates(self) -> bool:
        """Return that qmp_capabilities is libvirtd's to say, not ours."""
        return False

    def held(self) -> bool:
        """Return that it is not: libvirtd lets its clients take turns."""
        return False

    def holder(self) -> str:
        """Return nobody."""
        return ""

    async def greet(self, seconds: float) -> Welcome:
        """Ask libvirtd whether its own monitor connection is free and well."""
        try:
            said = words.printable(_virsh(seconds, "domcontrol", f"--domain={self._domain}").strip())
        except TimeoutError:
            return Silent()
        except (Unreadable, OSError) as error:
            return Closed(f"virsh domcontrol: {words.printable(str(error))}")
        if said.startswith("ok"):
            return Greeted({"domcontrol": said}, NOTE)
        if said.startswith("occupied"):
            return Busy(f"libvirtd ({said})")
        return Closed(f"virsh domcontrol: {said}")

    async def ask(self, question: str, arguments: Mapping[str, object], seconds: float) -> Reply:
        """Ask one question, and give virsh up at the deadline."""
        message = json.dumps({"execute": question, **({"arguments": dict(arguments)} if arguments else {})})
        try:
            printed = _virsh(seconds, "qemu-monitor-command", f"--domain={self._domain}", f"--cmd={message}")
        except TimeoutError:
            return NoAnswer()
        except (Unreadable, OSError) as error:
            # QEMU's own errors are printed as its reply. This is libvirtd's, as of a stuck state change lock.
            return NotAsked(f"virsh: {words.printable(str(error))}")
        return _reply(printed)

    async def close(self) -> None:
        """Do nothing: each question was a connection of its own."""


def _reply(printed: bytes) -> Reply:
    try:
        message = json.loads(printed)
    except (ValueError, RecursionError):
        message = None
    match message:
        case {"return": value}:
            return Answered(plain(value))
        case {"error": value}:
            return Refused(plain(value))
        case _:
            return Refused({"class": "NotUnderstood", "desc": f"virsh printed {words.printable(printed)!r}"})


def _virsh(seconds: float, *arguments: str) -> bytes:
    """Return what virsh prints.

    Raises:
        TimeoutError: It had not ended in time; it was killed.
        Unreadable: It is not installed, or it failed; its own words are in the message.
    """
    printed = programs.output(["virsh", "-q", "-c", CONNECTION, *arguments], seconds=seconds, most=MOST_BYTES)
    if isinstance(printed, Cut):
        raise TimeoutError(printed.why)
    return printed
