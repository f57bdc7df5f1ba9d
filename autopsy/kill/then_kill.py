"""Ends a VM whose evidence is sealed, where that is licensed, and has it started again, where that is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field

from autopsy.bundle.manifest import StepRecord
from autopsy.bundle.seal import Sealed
from autopsy.dataclass import dataclass
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.errors import AutopsyError, ExitCode
from autopsy.facts.model.around import Around
from autopsy.kill import kill, restart
from autopsy.kill.permission import Insistence, cautions, licence
from autopsy.target.platforms.catalogue import platform_of
from autopsy.target.target import Target
from autopsy.text import printable


@dataclass(frozen=True, slots=True, kw_only=True)
class KillOrder:
    """What the operator wants done with the VM once its evidence is safe."""

    then_start: bool = False
    dry_run: bool = False
    insistence: Insistence = field(default_factory=Insistence)
    require: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What became of the VM; empty words mean that it was not asked for."""

    killed: bool
    words: str
    exit_code: ExitCode
    started: bool = False
    start_words: str = ""
    notes: tuple[str, ...] = ()


def end(
    vm: Target,
    sealed: Sealed,
    order: KillOrder,
    *,
    diagnosis: Diagnosis | None,
    around: Around,
    steps: tuple[StepRecord, ...],
    say: Callable[[str], None],
    tell: Callable[[str], None] = lambda _: None,
) -> Ending:
    """Kill the VM if it may be killed; tell beforehand what that costs, and afterwards what came of it.

    `say` is told once, `tell` again and again how the kill goes.
    """
    refusal = licence(diagnosis, steps, order.require, order.insistence)
    if refusal:
        return Ending(killed=False, words=f"not killed: {refusal.words}", exit_code=refusal.exit_code)
    around = _known(vm, around)
    unit = restart.unit_of(vm) if order.then_start else ""
    nobody = restart.nobody_can(vm, unit) if order.then_start and not around.ha else ""
    if nobody:
        words = f"not killed: nobody could start it again, as --then-start asks: {nobody}; without --then-start it is"
        return Ending(killed=False, words=f"{words} killed", exit_code=ExitCode.NOT_STORED)
    warned = cautions(diagnosis)
    if order.dry_run:
        words = "; ".join((_would(vm, order, around), *warned))
        return Ending(killed=False, words=words, exit_code=ExitCode.DONE)
    for line in (*warned, *_warnings(diagnosis, around)):
        say(line)
    say(f"killing process {vm.pid}: {kill.means(vm)}, then up to {kill.DEATH_SECONDS:.0f} s for its end")
    try:
        killed = kill.kill(vm, sealed, tell=tell)
    except AutopsyError as error:
        return Ending(killed=False, words=f"not killed: {error}; {error.remedy}", exit_code=error.exit_code)
    return _told(vm, order, around, unit, killed)


def _told(vm: Target, order: KillOrder, around: Around, unit: str, killed: kill.Killed) -> Ending:
    """Say what came of the kill, and start the VM again where that is asked and it is gone by our hand."""
    if killed.by_itself:
        return Ending(killed=False, words=f"not killed: {killed.words}", exit_code=ExitCode.VM_ENDED)
    left = (f"left behind: {', '.join(killed.left)}",) if killed.left else ()
    if not killed.gone:
        words = f"{killed.words}; {kill.still_there(vm, killed).remedy}"
        start = "not started again: it has not ended" if order.then_start else ""
        code = ExitCode.STILL_THERE
        return Ending(killed=False, words=words, exit_code=code, start_words=start, notes=killed.notes)
    words = "; ".join((killed.words, *left, *_of_ha(vm, around)))
    if not order.then_start:
        return Ending(killed=True, words=words, exit_code=ExitCode.DONE, notes=killed.notes)
    started = _start(vm, around, unit)
    return Ending(
        killed=True,
        words=words,
        exit_code=ExitCode.DONE if started.done else ExitCode.NOT_STARTED,
        started=started.done,
        start_words=started.words,
        notes=killed.notes,
    )


def _known(vm: Target, around: Around) -> Around:
    """Leave out high availability where nothing keeps a VM of this manager's down for us."""
    has_ha = platform_of(vm.record.manager).keep_down(vm.record.name)
    return around if has_ha else Around(around.ongoing)


def _warnings(diagnosis: Diagnosis | None, around: Around) -> list[str]:
    warnings = [f"before the kill: {operation}" for operation in around.ongoing]
    lost = len(diagnosis.lost_by_kill) if diagnosis else 0
    if lost:
        warnings.append(
            f"the kill makes {lost} {'question' if lost == 1 else 'questions'} unanswerable; the report has them"
        )
    return warnings


def _would(vm: Target, order: KillOrder, around: Around) -> str:
    words = f"dry run, nothing was killed: process {vm.pid} ({printable(vm.record.name)}) would be, by {kill.means(vm)}"
    command = restart.command_for(vm)
    if order.then_start and not around.ha:
        words += f"; then {' '.join(command)}" if command else "; and could not be started again from here"
    return words


def _of_ha(vm: Target, around: Around) -> tuple[str, ...]:
    """Say what high availability will do next, and how to keep it from that."""
    if not around.ha:
        return ()
    if around.ha in {"stopped", "disabled", "ignored"}:
        return (f"HA keeps it {around.ha}: it does not start by itself",)
    down = f"`{platform_of(vm.record.manager).keep_down(vm.record.name)}` keeps it down"
    return (f"HA keeps it {around.ha}: it starts again by itself within seconds; {down}",)


def _start(vm: Target, around: Around, unit: str) -> restart.Started:
    if around.ha and around.ha not in {"stopped", "disabled", "ignored"}:
        return restart.Started(done=True, words=f"left to HA, which keeps it {around.ha} and starts it by itself")
    return restart.start_again(vm, unit)
