"""One capture from a name to a sealed bundle, its report and, if asked, the kill."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec

from autopsy import __version__
from autopsy.bundle import layout
from autopsy.bundle.manifest import SCHEMA, Clocks, Manifest, StepRecord
from autopsy.bundle.readme import readme
from autopsy.bundle.seal import Sealed, encode_manifest
from autopsy.bundle.vm_end import VmEnd, in_words
from autopsy.capture.endwatch import EndWatch
from autopsy.capture.freeze.size_estimate import needs
from autopsy.capture.pace import Pace
from autopsy.capture.plan import MEANWHILE, UNHURRIED, plan
from autopsy.capture.runner import Run, Watcher, run
from autopsy.capture.staging.staging import SETTLE_SECONDS, prepare
from autopsy.capture.step import Deadline, Options
from autopsy.commands import answers
from autopsy.commands.sealing import put_beside, seal_staged
from autopsy.commands.signing import can_sign, sign
from autopsy.dataclass import dataclass
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.errors import DamagedBundle, ExitCode, UsageError
from autopsy.facts.model.around import Around
from autopsy.linux import clocks
from autopsy.linux.child import ChildFailed, ChildTimedOut, in_child
from autopsy.linux.confine import sandbox
from autopsy.target import target
from autopsy.target.platforms.catalogue import platform_of
from autopsy.watch import ring

RESERVE = 0.25  # of the budget, kept for diagnosis, report and seal
MOST_RESERVE = 12.0
MOST_STARVED_RESERVE = 0.4  # of the budget, where the host is starved
LAST_COPYS_SHARE = 0.2  # of the budget that is left before the seal
LEAST_TIDYING = 1.0  # seconds of the budget that it is begun with
SIGN_SECONDS = 25.0
HURRIED_GAP = 0.5
NOT_STARTED = "not started again: we did not end it, and whoever did may have had a reason"


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureOptions:
    """What `autopsy capture` was asked for. `words` is the command line, for the manifest.

    Without places the bundle goes to the store. `one_of_many` says that others are captured beside it: who asked for
    them all tidies up. `asked_at` is the moment on CLOCK_MONOTONIC at which a person began to wait, None for now.
    """

    name: str
    options: Options
    places: tuple[Path, ...]
    words: tuple[str, ...]
    then_kill: bool = False
    then_start: bool = False
    dry_run: bool = False
    even_if_healthy: bool = False
    even_if_needless: bool = False
    require: tuple[str, ...] = ()
    sign: Path | None = None
    one_of_many: bool = False
    asked_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """A capture that was sealed. `report` stands beside the bundle and inside it; empty notes mean nothing to tell.

    `page` is what the report holds, empty where there is none. `end` is how the VM ended by itself meanwhile, None
    where it lived on. `budget` is what is left of it.
    """

    target: target.Target
    sealed: Sealed
    report: Path | None
    diagnosis: Diagnosis | None
    around: Around
    steps: tuple[StepRecord, ...]
    notes: tuple[str, ...]
    page: bytes
    began: Clocks
    budget: Deadline
    interrupted: bool = False
    end: VmEnd | None = None

    @property
    def stop_ms(self) -> float:
        """Return how long the VM stood still for us, all stops together."""
        return sum(step.stop_ns for step in self.steps) / 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A capture, and what became of the kill and of the start after it."""

    captured: Captured
    kill_asked: bool
    kill_done: bool
    kill_words: str
    exit_code: ExitCode
    start_asked: bool = False
    start_done: bool = False
    start_words: str = ""


def _quietly(_: str) -> None:
    """Tell nobody."""


def fulfil(wish: CaptureOptions, watcher: Watcher, say: Callable[[str], None] = _quietly) -> Ended:
    """Find the VM, capture it and, if that was asked for and may be done, kill it.

    `say` is given what a person must know before it happens.

    Raises:
        AutopsyError: no such VM, not permitted, or not stored; then nothing was killed.
    """
    check(wish)
    return fulfil_for(target.find_target(wish.name), wish, watcher, say)


def check(wish: CaptureOptions) -> None:
    """Refuse what cannot be meant, before anything is looked for.

    Raises:
        UsageError: there is no such step, or an option lacks the one that it belongs to.
    """
    unknown = [step for step in wish.require if step not in layout.STEPS]
    if unknown:
        raise UsageError(
            unknown[0], "there is no such step", remedy=f"--require takes one of {', '.join(layout.STEPS)}"
        )
    if not wish.then_kill and (wish.then_start or wish.dry_run):
        option = "--then-start" if wish.then_start else "--dry-run"
        raise UsageError(option, "there is no kill for it to follow", remedy="say --then-kill as well")
    if wish.sign is not None:
        can_sign(wish.sign)


def fulfil_for(
    vm: target.Target, wish: CaptureOptions, watcher: Watcher, say: Callable[[str], None] = _quietly
) -> Ended:
    """Capture a VM that is held and, if that was asked for and may be done, kill it.

    Raises:
        AutopsyError: not stored; then nothing was killed.
    """
    options = _hurried(vm, wish.options, say)
    if wish.asked_at is not None:
        options = replace(options, budget=max(0.0, options.budget - (time.monotonic() - wish.asked_at)))
    watch = EndWatch(vm)
    captured = capture(vm, watch, options=options, places=wish.places, words=wish.words, watcher=watcher, say=say)
    if wish.sign is not None:
        captured = _signed(captured, wish.sign)
    if captured.end is not None:
        return _with_rescued(_ended_by_itself(captured, captured.end, wish), wish)
    if wish.then_kill:
        return _with_rescued(_end(vm, watch, captured, wish, Heard(say, watcher.tell)), wish)
    code = ExitCode.INTERRUPTED if captured.interrupted else ExitCode.DONE
    return _with_rescued(
        Ended(captured=captured, kill_asked=False, kill_done=False, kill_words="not asked for", exit_code=code), wish
    )


def _signed(captured: Captured, key: Path) -> Captured:
    """Sign the sealed bundle. A key that has gone meanwhile costs the signature, which can be made later."""
    bundle = captured.sealed.path

    def work() -> bytes:
        try:
            return f"signed: {sign(captured.sealed, key)}".encode()
        except DamagedBundle as error:
            return f"not signed: {error}; {error.remedy}".encode()

    try:
        told = in_child(work, SIGN_SECONDS).decode()
    except (ChildTimedOut, ChildFailed) as error:
        told = f"the bundle could not be signed: {error}; `ssh-keygen -Y sign -n autopsy -f KEY {bundle}` does"
    return replace(captured, notes=(*captured.notes, told))


def _with_rescued(ended: Ended, wish: CaptureOptions) -> Ended:
    """Seal what earlier captures, killed themselves, left in memory: now that this VM's own matter is settled."""
    from autopsy.commands.seal import rescue  # noqa: PLC0415 - loaded meanwhile: it is not needed to begin
    from autopsy.commands.tidying import tidy  # noqa: PLC0415 - likewise

    captured = ended.captured
    left = captured.budget.left()
    if captured.interrupted or wish.one_of_many or left < LEAST_TIDYING:  # the next capture does it
        return ended
    told = (*tidy(captured.sealed.path, left), *rescue(captured.budget.left()))
    return replace(ended, captured=replace(captured, notes=captured.notes + told)) if told else ended


def _ended_by_itself(captured: Captured, end: VmEnd, wish: CaptureOptions) -> Ended:
    """Say that the VM is gone, and that we have neither killed it nor started it again."""
    told = f"not killed: it ended by itself: {in_words(end)}" if wish.then_kill else "not asked for"
    code = ExitCode.INTERRUPTED if captured.interrupted else ExitCode.VM_ENDED
    start = NOT_STARTED if wish.then_start else ""
    ended = Ended(captured=captured, kill_asked=wish.then_kill, kill_done=False, kill_words=told, exit_code=code)
    return replace(ended, start_asked=wish.then_start, start_words=start)


@dataclass(frozen=True, slots=True)
class Heard:
    """By whom a kill is heard of: `say` is told once, `tell` again and again how it goes."""

    say: Callable[[str], None]
    tell: Callable[[str], None]


def _end(vm: target.Target, watch: EndWatch, captured: Captured, wish: CaptureOptions, heard: Heard) -> Ended:
    """Kill the VM if it may be, and write that into the report. Whatever happens, the capture's result is kept."""
    from autopsy.kill.permission import Insistence  # noqa: PLC0415 - loaded once there is a kill to come
    from autopsy.kill.then_kill import KillOrder, end  # noqa: PLC0415 - likewise

    order = KillOrder(
        then_start=wish.then_start,
        dry_run=wish.dry_run,
        insistence=Insistence(
            even_if_healthy=wish.even_if_healthy,
            even_if_needless=wish.even_if_needless,
            command=_insisting(wish),
        ),
        require=wish.require,
    )
    if captured.diagnosis is not None:
        heard.say(f"verdict: {captured.diagnosis.headline} ({captured.diagnosis.confidence})")
    ending = end(
        vm,
        captured.sealed,
        order,
        diagnosis=captured.diagnosis,
        around=captured.around,
        steps=captured.steps,
        say=heard.say,
        tell=lambda words: heard.tell(f"kill: {words}"),
    )
    heard.tell("")
    captured = replace(captured, notes=captured.notes + ending.notes)
    if ending.exit_code is ExitCode.VM_ENDED and (late := watch.conclude(captured.sealed.path.parent)) is not None:
        return _ended_by_itself(replace(captured, end=late), late, wish)
    told = "; ".join(filter(None, (ending.words, ending.start_words)))
    answers.tell_in_report(captured.page, captured.report, f"{clocks.now().utc}: {told}", captured.began)
    return Ended(
        captured=captured,
        kill_asked=True,
        kill_done=ending.killed,
        kill_words=ending.words,
        exit_code=ending.exit_code,
        start_asked=wish.then_start,
        start_done=ending.started,
        start_words=ending.start_words,
    )


def _insisting(wish: CaptureOptions) -> str:
    """Return the command line that kills this VM although it is proven that it need not be killed."""
    alone = wish.words[:1] == ("capture",) and not wish.one_of_many
    said = wish.words[1:] if alone else (wish.name, "--then-kill")
    return shlex.join(("autopsy", "capture", "--even-if-needless", *said))


def _hurried(vm: target.Target, options: Options, say: Callable[[str], None]) -> Options:
    """Shorten the capture where somebody else is about to kill the VM."""
    warning = platform_of(vm.record.manager).hurry(vm.record.name)
    if not warning:
        return options
    say(f"note: {warning}")
    return replace(options, fast=True, gap=min(options.gap, HURRIED_GAP))


def capture(
    vm: target.Target,
    watch: EndWatch,
    *,
    options: Options,
    places: tuple[Path, ...],
    words: tuple[str, ...],
    watcher: Watcher,
    say: Callable[[str], None] = _quietly,
) -> Captured:
    """Freeze, examine, diagnose, render and seal; nothing is killed here.

    `say` is told at once what is wrong with a place.

    Raises:
        NotStored: no place could be written to, or the bundle could not be sealed; the message says where the
            evidence lies.
    """
    began = clocks.now()
    budget = Deadline(options.budget)
    staging = prepare(layout.name_of(vm.record.name, began.utc), places, needs(vm.record.pid, vm.process.ram_sizes))
    manifest = Manifest(
        schema=SCHEMA,
        autopsy=__version__,
        options=words,
        began=began,
        ended=began,
        host=clocks.host(),
        target=vm.record,
        steps=(),
    )
    for line in staging.notes:
        say(f"note: {line}")
    staging.claim(readme(__version__, vm.record, began).encode())

    def note(records: tuple[StepRecord, ...]) -> None:
        nonlocal manifest
        manifest = msgspec.structs.replace(
            manifest, steps=records, ended=clocks.now(), notes=tuple(staging.notes), end=watch.end
        )
        staging.put(layout.MANIFEST, encode_manifest(manifest))

    note(())
    if seen := ring.of_this_process(vm.record.pid, vm.record.start_ticks, manifest.host.boot_id):
        staging.put_evidence(layout.WATCH, layout.RING, seen)
    sandbox.warm()
    pace = Pace()
    pace.look()
    reserve = min(MOST_RESERVE, options.budget * RESERVE)
    reserve = max(reserve, min(options.budget * MOST_STARVED_RESERVE, pace.tail(0)))
    steps = run(
        plan(options),
        Run(
            target=vm,
            watch=watch,
            options=options,
            staging=staging,
            budget=Deadline(max(0.0, budget.left() - reserve)),
            watcher=watcher,
            note=note,
            meanwhile=MEANWHILE,
            unhurried=UNHURRIED,
            judge=partial(answers.first_words, staging.work),
            reserve=reserve,
            pace=pace,
        ),
    )
    while True:
        known = watch.conclude(staging.work)
        if known is not None:
            from autopsy.capture import aftermath  # noqa: PLC0415 - loaded once a VM has ended by itself

            aftermath.take_what_is_left(vm, options, staging)
        note(steps)
        judged = answers.diagnose(staging, budget, pace)
        if watch.conclude(staging.work) == known:  # it did not end while it was diagnosed
            break
    staging.settled(min(SETTLE_SECONDS, budget.left() * LAST_COPYS_SHARE))  # the seal makes all of it durable
    note(steps)
    sealed = seal_staged(staging, manifest, budget, options, pace)
    page = _bytes(staging.work / layout.REPORT)
    report = put_beside(page, report_path(sealed.path), budget, staging.notes)
    end = watch.conclude(staging.work)
    if end is not None and manifest.end is None:
        staging.notes.append(f"{in_words(end)}: its evidence was sealed by then, and does not tell of it")
    staging.clear()
    return Captured(
        target=vm,
        sealed=sealed,
        report=report,
        diagnosis=judged.diagnosis,
        around=judged.around,
        steps=steps,
        notes=tuple(staging.notes),
        page=page,
        began=began,
        budget=budget,
        interrupted=any(step.interrupted for step in steps),
        end=end,
    )


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def report_path(bundle: Path) -> Path:
    """Return where the report of a sealed bundle stands: beside it, under its name."""
    return bundle.with_name(bundle.name.removesuffix(".tar.zst") + ".html")
