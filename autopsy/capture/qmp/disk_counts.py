"""Asks a VM's free monitor what its disks have completed: one connection, one question, never for long.

For a process that may hang, and that nobody waits for: it enters the VM's network namespace. What a capture may ask of
a QEMU, and whose socket it asks, holds here too; a monitor that anybody else has, or waits for, is not touched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from autopsy.bundle.manifest import MonitorSocket
from autopsy.capture.qmp import commands, stability
from autopsy.capture.qmp.client import (
    Answered,
    Busy,
    Closed,
    CommandError,
    Greeted,
    NoAnswer,
    NoGreeting,
    NotAsked,
    SocketMonitor,
    Welcome,
)
from autopsy.capture.qmp.commands import BLOCKSTATS, CAPABILITIES, IOTHREADS, Qemu
from autopsy.dataclass import dataclass
from autopsy.linux.sock_diag import unix_sockets
from autopsy.linux.unix_sockets import TCP_ESTABLISHED, enter_network_of, sockets_of
from autopsy.target import monitors, qemu_processes
from autopsy.target.identity import stat_of
from autopsy.watch.model import MonitorOutcome
from autopsy.watch.signs.disk_silence import MOST_DISKS
from autopsy.watch.signs.monitor_asker import MonitorAnswer

GREETING_SECONDS = 1.0
QUESTION_SECONDS = 1.0
COUNTER = "_operations"  # how the name of each ends: of what was completed, of each kind, and what failed
WRAPS = 1 << 63
NAME_LENGTH = 200


class NotAnswered(Exception):
    """There is no answer; `outcome` says why."""

    def __init__(self, outcome: MonitorOutcome) -> None:
        super().__init__()
        self.outcome = outcome


@dataclass(frozen=True, slots=True)
class FreeMonitors:
    """What asks one VM after the other; the monitors of each are looked up once."""

    known: dict[tuple[int, int], tuple[MonitorSocket, ...]]

    def count(self, pid: int, start_ticks: int) -> MonitorAnswer:
        """Return what its disks have completed, or why that is not known. Never raises for what a VM does."""
        try:
            if stat_of(f"/proc/{pid}").start_ticks != start_ticks:
                return MonitorAnswer(MonitorOutcome.NONE)
            monitor = self._free_monitor(pid, start_ticks)
            return MonitorAnswer(MonitorOutcome.COUNTED, asyncio.run(_asked(monitor, pid)))
        except NotAnswered as reason:
            return MonitorAnswer(reason.outcome)
        except (OSError, ValueError, IndexError):  # the process is gone, or not ours to see
            return MonitorAnswer(MonitorOutcome.UNSEEN)

    def _free_monitor(self, pid: int, start_ticks: int) -> MonitorSocket:
        """Return a monitor that nobody has.

        Raises:
            NotAnswered: there is none.
            OSError: the kernel does not let us see.
        """
        key = (pid, start_ticks)
        if key not in self.known:
            self.known[key] = tuple(_askable(pid))
        if not self.known[key]:
            raise NotAnswered(MonitorOutcome.NONE)
        enter_network_of(pid)
        sockets = unix_sockets()
        own = [sockets[inode] for inode in sockets_of(pid) if inode in sockets]
        taken = {end.name for end in own if end.state == TCP_ESTABLISHED or end.waiting}
        listened = {end.name for end in own if end.state != TCP_ESTABLISHED}
        seen = [monitor for monitor in self.known[key] if monitor.address in listened]
        if not seen:
            raise NotAnswered(MonitorOutcome.UNSEEN)
        free = next((monitor for monitor in seen if monitor.address not in taken), None)
        if free is None:
            raise NotAnswered(MonitorOutcome.TAKEN)
        return free


def _askable(pid: int) -> Iterator[MonitorSocket]:
    """Yield the QMP sockets that QEMU has made itself: one that it inherited is whoever's who made it.

    One that may wait for its first client is left alone: whoever connects there may start the VM.
    """
    ears = monitors.ears_of(pid)
    for monitor in monitors.told(qemu_processes.tell([pid])[pid].options or ()):
        if monitor.protocol == "qmp" and monitor.transport == "unix" and not monitor.waits:
            reached = monitors.reached(monitor, ears)
            if reached.reachable:
                yield reached


async def _asked(monitor: MonitorSocket, pid: int) -> dict[str, int]:
    """Connect, ask, and hang up however that goes.

    Raises:
        NotAnswered: it was not asked, or did not answer.
    """
    asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)  # a connection that broke
    transport = SocketMonitor(monitor.address, monitor.reachable, pid)
    try:
        qemu = Qemu(version=commands.version(_greeting(await transport.greet(GREETING_SECONDS))))
        await _answer(transport, CAPABILITIES)
        if commands.takes_lock(BLOCKSTATS, qemu):
            without = await _answer(transport, IOTHREADS) == []
            qemu = Qemu(version=qemu.version, without_iothreads=without)
        if commands.takes_lock(BLOCKSTATS, qemu) or stability.why_not(BLOCKSTATS, qemu, unstable_too=False):
            raise NotAnswered(MonitorOutcome.LOCKS)
        return completed(await _answer(transport, BLOCKSTATS))
    finally:
        await transport.close()


def _greeting(welcome: Welcome) -> Any:  # noqa: ANN401 - JSON
    match welcome:
        case Greeted(greeting):
            return greeting
        case Busy():
            raise NotAnswered(MonitorOutcome.TAKEN)
        case NoGreeting():
            raise NotAnswered(MonitorOutcome.SILENT)
        case Closed():
            raise NotAnswered(MonitorOutcome.REFUSED)


async def _answer(transport: SocketMonitor, question: str) -> Any:  # noqa: ANN401 - JSON
    match await transport.ask(question, {}, QUESTION_SECONDS):
        case Answered(value):
            return value
        case CommandError():
            raise NotAnswered(MonitorOutcome.REFUSED)
        case NoAnswer() | NotAsked():
            raise NotAnswered(MonitorOutcome.SILENT)


def completed(answer: Any) -> dict[str, int]:  # noqa: ANN401 - JSON
    """Return how many requests each disk has completed, well or not, by an answer to query-blockstats."""
    counts: dict[str, int] = {}
    for disk in answer if isinstance(answer, list) else ():
        stats = disk.get("stats") if isinstance(disk, dict) else None
        if not isinstance(stats, dict):
            continue
        if (name := _name(disk)) and len(counts) < MOST_DISKS:
            done = sum(count for key, count in stats.items() if key.endswith(COUNTER) and isinstance(count, int))
            counts[name] = done % WRAPS
    return counts


def _name(disk: dict[str, Any]) -> str:
    names = (disk.get(key) for key in ("qdev", "device", "node-name"))
    return next((name[:NAME_LENGTH] for name in names if isinstance(name, str) and name), "")


def counter() -> FreeMonitors:
    """Return one that knows no VM yet."""
    return FreeMonitors({})
