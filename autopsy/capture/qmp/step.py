"""The steps that ask QEMU's monitor: politely, one question at a time, and never again after one was not answered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from autopsy.bundle import layout
from autopsy.bundle.records import LeftOut, QmpExchange
from autopsy.capture.qmp import commands, connect, guard, session, stability
from autopsy.capture.qmp.client import NoAnswer, NotAsked
from autopsy.capture.qmp.session import Interview
from autopsy.capture.step import Collected, Failed, Outcome, Scene, Skipped, TimedOut

Talk = Callable[[Interview], Awaitable[None]]

# The steps that come before each, whose silence forbids it.
BEFORE = (layout.QUERY_STATUS, layout.QUERY_BLOCK, layout.THROTTLE_GROUPS)


def query_status(scene: Scene) -> Outcome:
    """Ask what only reads QEMU's memory."""

    async def talk(ask: Interview) -> None:
        *first, schema = commands.first(scene.target.record.program)
        qemu = commands.Qemu()
        for question in first:
            await ask.ask(question, why_not=lacks(question, qemu))
            qemu = session.qemu_of(session.earlier(scene, scene.step))
        known = stability.known_unmarked(qemu)
        await ask.ask(schema, why_not=lacks(schema, qemu) or known, keep=commands.marks)
        ask.qemu = qemu = session.qemu_of(session.earlier(scene, scene.step))
        for question in commands.COUNTERS:
            lock = commands.takes_lock(question, qemu)
            await ask.ask(
                question, why_not=lacks(question, qemu) or (lock and f"asked in {layout.QUERY_BLOCK}: {lock}")
            )
        for question in commands.MEMORY:
            await ask.ask(question, why_not=lacks(question, qemu))
        await ask.ask(commands.QOM_LIST, {"path": commands.OBJECTS})

    return converse(scene, talk)


def lacks(question: str, qemu: commands.Qemu) -> str:
    """Return why a question is not asked of a QEMU that has told that it does not know it."""
    return "this QEMU does not know it" if qemu.lacks(question) else ""


def query_block(scene: Scene) -> Outcome:
    """Ask for disks and nodes, which can take locks and ask the storage, if the guard lets us."""
    first = session.earlier(scene, layout.QUERY_STATUS)
    qemu = session.qemu_of(first)

    async def talk(ask: Interview) -> None:
        for question in commands.COUNTERS:
            if commands.takes_lock(question, qemu) and not qemu.lacks(question):
                await ask.ask(question)
        await ask.ask(commands.NAMED_NODES, {"flat": True})
        await ask.ask(commands.BLOCK)

    return _guarded(scene, talk, commands.BLOCK)


def throttle_groups(scene: Scene) -> Outcome:
    """Ask each throttle-group object for its limits, if the guard lets us; legacy limits came with query-block."""
    first = session.earlier(scene, layout.QUERY_STATUS)
    paths = commands.throttle_groups(session.answer_to(first, commands.QOM_LIST))

    async def talk(ask: Interview) -> None:
        for path in paths[: commands.MOST_GROUPS]:
            await ask.ask(commands.QOM_GET, {"path": path, "property": "limits"})

    if silent := silence(scene):
        return silent
    if not paths:
        if session.answer_to(first, commands.QOM_LIST) is None:
            return Skipped(f"{commands.QOM_LIST} of {commands.OBJECTS} was not answered: no throttle group is known")
        return Collected("this VM has no throttle-group objects; limits of a disk's own come with query-block")
    if (left := len(paths) - commands.MOST_GROUPS) > 0:
        scene.leave_out(LeftOut(what="there are more throttle groups than are told", why=f"{left} were not asked"))
    return _guarded(scene, talk, f"{commands.QOM_GET} of a throttle group")


def ask_again(scene: Scene) -> Outcome:
    """Ask again what was answered before and moves when I/O does: what stands still is stuck."""
    if silent := silence(scene):
        return silent
    before = [
        exchange for step in BEFORE for exchange in session.earlier(scene, step) if exchange.outcome == "answered"
    ]
    again = [exchange for exchange in before if exchange.question in commands.AGAIN]
    if not again:
        return Skipped("nothing was answered the first time")
    qemu = session.qemu_of(session.earlier(scene, layout.QUERY_STATUS))
    refusal = _refusal_of(scene, again, qemu)

    async def talk(ask: Interview) -> None:
        for exchange in again:
            await ask.ask(
                exchange.question,
                exchange.arguments,
                why_not=refusal if commands.takes_lock(exchange.question, qemu) else "",
            )

    return converse(scene, talk)


def _refusal_of(scene: Scene, again: list[QmpExchange], qemu: commands.Qemu) -> str:
    """Return why those that take a lock are not asked again, empty when they may be, or there are none."""
    if not any(commands.takes_lock(exchange.question, qemu) for exchange in again):
        return ""
    match guard.judge_monitor(scene):
        case guard.Unanswerable(reasons):
            return "" if scene.options.ask_anyway else "; ".join(reasons)
        case guard.Permit():
            return ""


def _guarded(scene: Scene, talk: Talk, question: str) -> Outcome:
    """Converse if nothing that was seen says that an answer may never come."""
    if silent := silence(scene):
        return silent
    match guard.judge_monitor(scene):
        case guard.Permit():
            return converse(scene, talk)
        case guard.Unanswerable(reasons):
            why = f"{'; '.join(reasons)}: {question} could block the main loop"
            if not scene.options.ask_anyway:
                return Skipped(why)
            return converse(scene, talk, note=f"asked anyway, although {why}")


def silence(scene: Scene) -> Skipped | None:
    """Return why no more is asked: QEMU owes us an answer already, or never greeted us."""
    for step in (*BEFORE, layout.SECOND_EXPOSURE):
        if step == scene.step:
            break
        if question := session.unanswered(session.earlier(scene, step)):
            return Skipped(f"{question} was not answered in {step}")
    greetings = session.earlier(scene, layout.QUERY_STATUS)
    if not any(exchange.outcome == "greeted" for exchange in greetings):
        return Skipped(f"no monitor greeted us in {layout.QUERY_STATUS}")
    first, *_ = commands.first(scene.target.record.program)
    if session.answer_to(greetings, first) is None:
        return Skipped(f"{first} has no answer from {layout.QUERY_STATUS}")
    return None


def converse(scene: Scene, talk: Talk, note: str = "", *, unstable_too: bool = False) -> Outcome:
    """Hold one conversation with a monitor of the VM, and say how it went."""
    return asyncio.run(_session(scene, talk, note, unstable_too=unstable_too))


async def _session(scene: Scene, talk: Talk, note: str, *, unstable_too: bool) -> Outcome:
    """Hold one conversation, and hang up however it goes."""
    asyncio.get_running_loop().set_exception_handler(_ignore)
    reached = await connect.reach(scene)
    if isinstance(reached, Collected | TimedOut | Failed | Skipped):
        return reached
    ask = Interview(scene, reached, unstable_too=unstable_too)
    try:
        negotiated = "" if reached.negotiates else "libvirtd said it when it connected"
        await ask.ask(commands.CAPABILITIES, why_not=negotiated)
        await talk(ask)
    finally:
        await reached.close()
    return _outcome(ask, _joined(note, reached.footprint if ask.answered else ""))


def _ignore(_loop: asyncio.AbstractEventLoop, _context: dict[str, Any]) -> None:
    """Say nothing of a connection that broke: the exchange that it broke under has said it."""


def _outcome(ask: Interview, note: str) -> Outcome:
    match ask.ended:
        case NoAnswer(why):
            if why:
                return Failed(_joined(f"{ask.ended_at}: {why}", note))
            return TimedOut(_joined(f"{ask.ended_at}: no answer in {ask.ended_after:.1f} s", note))
        case NotAsked(why):
            return Skipped(_joined(f"{ask.ended_at}: {why}", note))
        case None:
            if ask.late:
                return TimedOut(_joined(f"the step's time was up after {ask.answered} answers", note))
            return Collected(_joined(f"{ask.answered} answers", note))


def _joined(*parts: str) -> str:
    return "; ".join(filter(None, parts))
