"""Captures several VMs beside each other, each in a process of its own, all under one budget."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import field, replace
from pathlib import Path

import msgspec

from autopsy.capture.run import Interrupted, Watcher
from autopsy.commands.capture import LEAST_TIDYING, fulfil_for
from autopsy.commands.capture_options import CaptureOptions, check
from autopsy.commands.ending import Ended
from autopsy.commands.seal import rescue
from autopsy.commands.tidying import tidy
from autopsy.dataclass import dataclass
from autopsy.errors import AutopsyError, ExitCode, UsageError
from autopsy.linux.child import ChildFailed, ChildTimedOut, collect, spawn
from autopsy.linux.tasks.forking import Child, end
from autopsy.target import target
from autopsy.target.stalls import stalled
from autopsy.text import printable

MOST_AT_ONCE = 16  # each takes up to 95 MB
LEAST_SECONDS = 5.0  # that a capture can be made in
EACH_SECONDS = 15.0  # for each round, where nobody set a budget
AFTER_SECONDS = 45.0  # past its budget: a kill and a start again may take so long
ANSWER_SECONDS = 5.0
GONE_BY_THEN = "no time was left for it"
# Of several exit codes, the one that is told: the first of these that any had.
GRAVEST = (
    ExitCode.INTERRUPTED,
    ExitCode.OUR_BUG,
    ExitCode.STILL_THERE,
    ExitCode.NOT_STARTED,
    ExitCode.NOT_STORED,
    ExitCode.NOT_PERMITTED,
    ExitCode.NO_SUCH_VM,
    ExitCode.USAGE,
    ExitCode.VM_ENDED,
)


class FinishedCapture(msgspec.Struct, frozen=True, kw_only=True):
    """What a capture's own process says at its end: its JSON, and the lines that people read."""

    exit_code: int
    json: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is asked for: the VMs by name, and with `stuck` all that look so; `wish` is of each.

    `budget` is for all of them, None where nobody set one.
    """

    names: tuple[str, ...]
    stuck: bool
    wish: CaptureOptions
    budget: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class One:
    """How it went with one VM: `finished` is its capture's end; where there was none, `trouble` says why."""

    name: str
    exit_code: ExitCode
    finished: FinishedCapture | None = None
    trouble: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Many:
    """How it went with all of them."""

    ones: tuple[One, ...]
    notes: tuple[str, ...]

    @property
    def exit_code(self) -> ExitCode:
        """Return the gravest of all."""
        had = {one.exit_code for one in self.ones}
        return next((code for code in GRAVEST if code in had), ExitCode.DONE)


@dataclass(frozen=True, slots=True)
class _Held:
    """A VM that is held, the word that means it, and whether a person said so."""

    name: str
    vm: target.Target
    named: bool


@dataclass(slots=True)
class _Running:
    held: _Held
    child: Child
    until: float


@dataclass(slots=True)
class _Rounds:
    """What waits, what runs, and what is done."""

    waiting: list[_Held]
    order: Order
    give_up: float
    render: Callable[[Ended], FinishedCapture]
    within: Callable[[Callable[[Watcher, Callable[[str], None]], Ended], str], Ended]
    say: Callable[[str], None]
    running: list[_Running] = field(default_factory=list)
    done: list[One] = field(default_factory=list)
    interrupted: bool = False


def capture_many(
    order: Order,
    watcher: Watcher,
    *,
    render: Callable[[Ended], FinishedCapture],
    within: Callable[[Callable[[Watcher, Callable[[str], None]], Ended], str], Ended],
    say: Callable[[str], None],
) -> Many:
    """Capture every VM of the order; no trouble with one costs another its capture.

    `render` puts a capture into words; `within` runs one with what it needs to be heard and interrupted, under its
    name: both in the capture's own process.

    Raises:
        UsageError: nothing can be meant, or a kill of VMs that nobody named.
    """
    check(order.wish)
    held, failed = _hold(order, say)
    if order.wish.then_kill and not any(vm.named for vm in held) and not failed:
        looks = ", ".join(vm.name for vm in held) or "none"
        raise UsageError(
            "--then-kill",
            "a VM is killed only if it is named",
            remedy=f"name those that may be killed; those that look stuck: {looks}",
        )
    at_once = min(len(held), MOST_AT_ONCE, 2 * len(os.sched_getaffinity(0))) or 1
    count = -(-len(held) // at_once)
    seconds = order.budget or max(order.wish.options.budget, EACH_SECONDS * count)
    if held:
        say(f"{len(held)} virtual machines, {at_once} at once, {seconds:.0f} s for all")
    rounds = _Rounds([*held], order, time.monotonic() + seconds, render, within, say, done=[*failed])
    _run(rounds, at_once, watcher)
    bundles = [_bundle_of(one.finished) for one in rounds.done if one.finished is not None]
    names = [one.name for one in failed] + [vm.name for vm in held]
    done = tuple(sorted(rounds.done, key=lambda one: names.index(one.name)))
    left = rounds.give_up - time.monotonic()
    if rounds.interrupted or not bundles or left < LEAST_TIDYING:
        return Many(ones=done, notes=())
    return Many(ones=done, notes=(*tidy(bundles[0], left), *rescue(left)))


def _hold(order: Order, say: Callable[[str], None]) -> tuple[list[_Held], list[One]]:
    """Take hold of each VM once; those that cannot be held are told of with the rest."""
    held: list[_Held] = []
    failed: list[One] = []
    words = [(name, True) for name in order.names]
    if order.stuck:
        stalls = stalled()
        words += [(stall.vm.target, False) for stall in stalls]
        for stall in stalls:
            say(f"{stall.vm.name} ({stall.vm.target}): {stall.words}")
        if not words:
            say("no virtual machine of this host looks stuck")
    for word, named in words:
        try:
            vm = target.find_target(word)
        except AutopsyError as error:
            failed.append(One(name=printable(word), exit_code=error.exit_code, trouble=str(error), remedy=error.remedy))
            continue
        if any(vm.pid == other.vm.pid for other in held):
            os.close(vm.pidfd)
        else:
            held.append(_Held(printable(word), vm, named))
    return held, failed


def _run(rounds: _Rounds, at_once: int, watcher: Watcher) -> None:
    try:
        while rounds.waiting or rounds.running:
            while rounds.waiting and len(rounds.running) < at_once:
                _begin(rounds, at_once)
            with contextlib.suppress(Interrupted):
                watcher.tick()
                _gather(rounds)
                continue
            rounds.interrupted = True
            rounds.done += [_not_captured(vm, "interrupted before it", ExitCode.INTERRUPTED) for vm in rounds.waiting]
            rounds.waiting.clear()
            for running in rounds.running:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(running.child.pidfd, signal.SIGINT)
    finally:
        for running in rounds.running:
            end(running.child)


def _begin(rounds: _Rounds, at_once: int) -> None:
    """Begin the next one with its share of the time that is left."""
    held = rounds.waiting.pop(0)
    turns = -(-(len(rounds.waiting) + 1) // at_once)
    left = rounds.give_up - time.monotonic()
    share = min(left, max(LEAST_SECONDS, left / turns))
    if share < LEAST_SECONDS:
        rounds.done.append(_not_captured(held, GONE_BY_THEN, ExitCode.NOT_STORED))
        return
    wish = replace(
        rounds.order.wish,
        name=held.name,
        options=replace(rounds.order.wish.options, budget=share),
        then_kill=rounds.order.wish.then_kill and held.named,
        then_start=rounds.order.wish.then_start and held.named,
        dry_run=rounds.order.wish.dry_run and held.named,
        one_of_many=True,
        asked_at=None,
    )

    def work() -> bytes:
        ended = rounds.within(lambda watcher, say: fulfil_for(held.vm, wish, watcher, say), held.name)
        return msgspec.json.encode(rounds.render(ended))

    try:
        child = spawn(work)
    except ChildFailed as error:
        rounds.done.append(_not_captured(held, str(error), ExitCode.NOT_STORED))
        return
    rounds.running.append(_Running(held, child, time.monotonic() + share + AFTER_SECONDS))


def _gather(rounds: _Rounds) -> None:
    """Wait a moment for any that ends, and take what it says; give up what does not end."""
    poller = select.poll()
    for running in rounds.running:
        poller.register(running.child.answers, select.POLLIN)
    ready = {descriptor for descriptor, _ in poller.poll(100)}
    for running in tuple(rounds.running):
        if running.child.answers not in ready and time.monotonic() < running.until:
            continue
        rounds.running.remove(running)
        one = _answer(running)
        rounds.done.append(one)
        for line in one.finished.lines if one.finished else (f"{one.name}: NOT CAPTURED: {one.trouble}",):
            rounds.say(line)


def _answer(running: _Running) -> One:
    try:
        finished = msgspec.json.decode(collect(running.child, ANSWER_SECONDS), type=FinishedCapture)
    except (ChildTimedOut, ChildFailed) as error:
        return _not_captured(running.held, str(error), ExitCode.NOT_STORED)
    return One(name=running.held.name, exit_code=ExitCode(finished.exit_code), finished=finished)


def _not_captured(held: _Held, why: str, code: ExitCode) -> One:
    return One(name=held.name, exit_code=code, trouble=why, remedy=f"autopsy capture pid:{held.vm.pid}")


class _OnlyBundle(msgspec.Struct, frozen=True):
    bundle: str


def _bundle_of(finished: FinishedCapture) -> Path:
    return Path(msgspec.json.decode(finished.json, type=_OnlyBundle).bundle)
