"""Asks a VM's QMP monitor through libvirtd, which holds it, by way of virsh."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping

import psutil

from autopsy import text as plain_words
from autopsy.bundle.manifest import Domain
from autopsy.capture.qmp.client import (
    MOST_BYTES,
    MOST_VALUES,
    TOO_BIG,
    Answered,
    Busy,
    Closed,
    CommandError,
    Greeted,
    NoAnswer,
    NotAsked,
    Reply,
    Welcome,
    plain,
    values,
)
from autopsy.capture.reading import programs
from autopsy.capture.reading.reader import Truncated, Unreadable
from autopsy.target import identity

DAEMONS = frozenset({"libvirtd", "virtqemud"})
NOTE = "asked through libvirtd: it marks the domain tainted (custom-monitor)"


def daemons_in_words() -> str:
    """Return how libvirt's daemons are, each by its main thread; empty where none is to be seen."""
    daemons = []
    for pid in psutil.pids():
        with contextlib.suppress(OSError, ValueError, IndexError):
            stat = identity.stat_of(f"/proc/{pid}")
            if stat.comm in DAEMONS:
                wchan = identity.wchan_of(pid, pid)
                daemons.append(f"{stat.comm} {pid} is in State {stat.state}{f', in {wchan}' if wchan else ''}")
    return f": {', '.join(daemons)}" if daemons else ""


class VirshMonitor:
    """The monitor of a libvirt domain. libvirtd has said qmp_capabilities long ago."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain

    @property
    def monitor(self) -> str:
        """Return how the monitor is reached."""
        return f"virsh -c {self._domain.connection} qemu-monitor-command"

    @property
    def negotiates(self) -> bool:
        """Return that qmp_capabilities is libvirtd's to say, not ours."""
        return False

    @property
    def footprint(self) -> str:
        """Return the mark that libvirt sets on a domain whose monitor somebody else has used."""
        return NOTE

    def held(self) -> bool:
        """Return that it is not: libvirtd lets its clients take turns."""
        return False

    def holder(self) -> str:
        """Return nobody."""
        return ""

    async def greet(self, seconds: float) -> Welcome:
        """Ask libvirtd whether its own monitor connection is free and well."""
        try:
            said = plain_words.printable(self._virsh(seconds, "domcontrol").strip())
        except TimeoutError:
            # Of QEMU that says nothing.
            return Closed(f"libvirtd does not answer (virsh domcontrol, {seconds:.0f} s){daemons_in_words()}")
        except (Unreadable, OSError, OverflowError) as error:
            return Closed(f"virsh domcontrol: {plain_words.printable(str(error))}")
        if said.startswith("ok"):
            return Greeted({"domcontrol": said}, NOTE)
        if said.startswith("occupied"):
            return Busy(f"libvirtd ({said})")
        return Closed(f"virsh domcontrol: {said}")

    async def ask(self, question: str, arguments: Mapping[str, object], seconds: float) -> Reply:
        """Ask one question, and give virsh up at the deadline."""
        message = json.dumps({"execute": question, **({"arguments": dict(arguments)} if arguments else {})})
        try:
            printed = self._virsh(seconds, "qemu-monitor-command", f"--cmd={message}")
        except TimeoutError:
            return NoAnswer()
        except OverflowError:
            return CommandError(TOO_BIG)
        except (Unreadable, OSError) as error:
            # QEMU's own errors are printed as its reply. This is libvirtd's, as of a stuck state change lock.
            return NotAsked(f"virsh: {plain_words.printable(str(error))}")
        return _reply(printed)

    async def close(self) -> None:
        """Do nothing: each question was a connection of its own."""

    def _virsh(self, seconds: float, command: str, *arguments: str) -> bytes:
        """Return what virsh prints.

        Raises:
            TimeoutError: It had not ended in time; it was killed.
            OverflowError: It printed more than an answer may be.
            Unreadable: It is not installed, or it failed; its own words are in the message.
        """
        words = ["virsh", "-q", "-c", self._domain.connection, command, f"--domain={self._domain.word}", *arguments]
        printed = programs.output(words, seconds=seconds, most=MOST_BYTES, user=self._domain.user)
        if isinstance(printed, Truncated) and len(printed.data) >= MOST_BYTES:
            raise OverflowError(printed.why)
        if isinstance(printed, Truncated):
            raise TimeoutError(printed.why)
        if values(printed) > MOST_VALUES:
            raise OverflowError(f"more than {MOST_VALUES} values")
        return printed


def _reply(printed: bytes) -> Reply:
    try:
        message = json.loads(printed)
    except (ValueError, RecursionError):
        message = None
    match message:
        case {"return": value}:
            return Answered(plain(value))
        case {"error": value}:
            return CommandError(plain(value))
        case _:
            return CommandError({"class": "NotUnderstood", "desc": f"virsh printed {plain_words.printable(printed)!r}"})
