"""Gets us the one place that a monitor has, or says who has it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import field
from typing import Any, Literal

from autopsy import text
from autopsy.bundle.layout import QUERY_STATUS
from autopsy.bundle.manifest import MonitorSocket
from autopsy.bundle.records import QmpExchange
from autopsy.capture.qmp import commands, first_client, session
from autopsy.capture.qmp.client import Busy, Closed, Greeted, NoGreeting, SocketMonitor, Transport, Welcome
from autopsy.capture.qmp.virsh import VirshMonitor
from autopsy.capture.step import Failed, Outcome, Scene, Skipped, TimedOut
from autopsy.dataclass import dataclass

GREETING_SECONDS = 2.0
SLOT_SECONDS = 4.0  # pvestatd and its like let go within this; libvirtd never does
RESERVE_SECONDS = 1.0  # of the step's time, for the questions themselves
POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class HeldMonitor:
    """Since when we know that somebody else has a monitor, and who."""

    since_ns: int
    holder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GreetingRecord:
    """How a greeting goes into the evidence."""

    outcome: Literal["greeted", "busy", "silent", "refused", "absent"]
    answer: Any = None
    why: str = ""
    peer: str = ""


@dataclass(slots=True)
class Lobby:
    """The monitors that are still worth trying, who holds which, and what became of the others."""

    scene: Scene
    waiting: list[Transport]
    held: dict[Transport, HeldMonitor] = field(default_factory=dict)
    turned: list[Busy | NoGreeting | Closed] = field(default_factory=list)

    async def knock(self, transport: Transport, patience: float) -> bool:
        """Try one monitor and return whether it greeted us.

        The only one is queued for while it is held, for at most `patience` seconds: whoever polls it (pvestatd does,
        every few seconds) may never leave a gap that looking now and then would find.
        """
        begun = time.monotonic_ns()
        seconds = GREETING_SECONDS
        if transport.held():
            if transport not in self.held:
                self.held[transport] = HeldMonitor(begun, transport.holder())
            if len(self.waiting) > 1:
                return False
            seconds = patience
        seconds = min(seconds, self.scene.deadline.left())
        welcome = await transport.greet(seconds)
        if isinstance(welcome, Greeted):
            self.write(transport, welcome, begun, seconds, self._waited_for(transport))
            return True
        await transport.close()
        if isinstance(welcome, Busy):
            self.held.setdefault(transport, HeldMonitor(begun, welcome.peer))
            return False
        self.write(transport, welcome, begun, seconds)
        self.turned.append(welcome)
        self.waiting.remove(transport)
        self.held.pop(transport, None)
        return False

    def _waited_for(self, transport: Transport) -> str:
        held = self.held.pop(transport, None)
        return f"waited {(time.monotonic_ns() - held.since_ns) / 1e9:.1f} s for {held.holder}" if held else ""

    def leave(self, why: str) -> None:
        """Write down those who still hold a monitor."""
        for transport, held in self.held.items():
            busy = Busy(transport.holder() or held.holder)
            self.write(transport, busy, held.since_ns, (time.monotonic_ns() - held.since_ns) / 1e9, why)
            self.turned.append(busy)

    def write(self, transport: Transport, welcome: Welcome, begun_ns: int, seconds: float, why: str = "") -> None:
        """Write one greeting down, as an exchange of its own."""
        greeting = _told(welcome, why)
        exchange = QmpExchange(
            question=commands.GREETING,
            outcome=greeting.outcome,
            asked_ns=begun_ns,
            ms=(time.monotonic_ns() - begun_ns) / 1e6,
            deadline_ms=seconds * 1e3,
            monitor=transport.monitor,
            answer=greeting.answer,
            why=greeting.why,
            peer=greeting.peer,
        )
        session.write_down(self.scene, exchange)


def _told(welcome: Welcome, why: str) -> GreetingRecord:
    match welcome:
        case Greeted(value, note):
            return GreetingRecord(outcome="greeted", answer=value, why="; ".join(filter(None, (note, why))))
        case Busy(peer):
            return GreetingRecord(outcome="busy", peer=peer, why=why)
        case NoGreeting():
            return GreetingRecord(outcome="silent", why=why)
        case Closed(reason, absent):
            return GreetingRecord(outcome="absent" if absent else "refused", why=reason)


async def reach(scene: Scene) -> Transport | Outcome:
    """Return a monitor that has greeted us, or why there is none. Every greeting is written down."""
    lobby = Lobby(scene, list(_candidates(scene)))
    if not lobby.waiting:
        return _nothing_to_ask(scene)
    give_up = time.monotonic() + min(SLOT_SECONDS, max(0.0, scene.deadline.left() - RESERVE_SECONDS))
    while lobby.waiting:
        for transport in tuple(lobby.waiting):
            if await lobby.knock(transport, max(POLL_SECONDS, give_up - time.monotonic())):
                lobby.leave("another monitor was free")
                return transport
        if time.monotonic() >= give_up:
            break
        await asyncio.sleep(POLL_SECONDS)
    lobby.leave("")
    return _outcome(lobby.turned)


def _candidates(scene: Scene) -> Iterator[Transport]:
    """Yield the ways to ask, the best first: the one that has greeted us before, then the free ones."""
    record = scene.target.record
    awaited = first_client.awaited(scene)
    reachable = [monitor for monitor in record.monitors if _askable(monitor) and monitor.address not in awaited]
    transports = [SocketMonitor(monitor.address, monitor.reachable, record.pid) for monitor in reachable]
    known = {exchange.monitor for exchange in session.earlier(scene, QUERY_STATUS) if exchange.outcome == "greeted"}
    transports.sort(key=lambda transport: (transport.monitor not in known, transport.held()))
    if record.domain is not None and record.domain.connection:
        # Whoever holds its socket is libvirtd, and it never lets go; it can be asked to ask.
        yield from (transport for transport in transports if not transport.held())
        yield VirshMonitor(record.domain)
    else:
        yield from transports


def _askable(monitor: MonitorSocket) -> bool:
    return monitor.protocol == "qmp" and monitor.transport == "unix" and bool(monitor.reachable)


def _nothing_to_ask(scene: Scene) -> Outcome:
    """Tell the monitors that there are, and why none of them is touched."""
    monitors, awaited = scene.target.record.monitors, first_client.awaited(scene)
    for monitor in monitors:
        exchange = QmpExchange(
            question=commands.GREETING,
            outcome="skipped",
            asked_ns=time.monotonic_ns(),
            ms=0,
            deadline_ms=0,
            monitor=monitor.address,
            why=_untouched(monitor, awaited),
        )
        session.write_down(scene, exchange)
    if not monitors:
        return Skipped("this VM has no monitor")
    return Skipped(
        "no QMP monitor that can be asked: " + "; ".join(_untouched(monitor, awaited) for monitor in monitors)
    )


def _untouched(monitor: MonitorSocket, awaited: frozenset[str]) -> str:
    address = text.printable(monitor.address, 100)
    if monitor.address in awaited:
        return f"QEMU waits on {address} for its first client: whoever connects would start the VM"
    if monitor.protocol == "hmp":
        return f"{monitor.transport} {address} is a human monitor (HMP)"
    if monitor.transport == "unix":
        return f"{address} cannot be reached from here"
    return f"QMP is on {monitor.transport} {address}, which is left alone"


def _outcome(turned: list[Busy | NoGreeting | Closed]) -> Outcome:
    """Return the outcome of a step that no monitor greeted: silence says the most about the VM."""
    if any(isinstance(answer, NoGreeting) for answer in turned):
        return TimedOut(f"{commands.GREETING}: no answer in {GREETING_SECONDS:.1f} s")
    holders = [answer.peer for answer in turned if isinstance(answer, Busy)]
    if holders:
        return Skipped(f"the monitor is held by {', '.join(holders)}")
    return Failed("; ".join(answer.why for answer in turned if isinstance(answer, Closed)))
