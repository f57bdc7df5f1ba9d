"""Freezes, examines, diagnoses and seals a VM that is held; nothing is killed here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from autopsy import __version__
from autopsy.bundle import layout
from autopsy.bundle.manifest import SCHEMA, Clocks, Manifest, StepRecord, encode_manifest
from autopsy.bundle.readme import readme
from autopsy.bundle.vm_end import VmEnd, in_words
from autopsy.capture.endwatch import EndWatch
from autopsy.capture.freeze.size_estimate import estimate
from autopsy.capture.pace import Pace
from autopsy.capture.plan import MEANWHILE, UNHURRIED, plan
from autopsy.capture.run import Run, Watcher
from autopsy.capture.runner import run
from autopsy.capture.staging.staging import SETTLE_SECONDS, prepare
from autopsy.capture.step import Deadline, Options
from autopsy.commands import answers
from autopsy.dataclass import dataclass
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.facts.model.around import Around
from autopsy.linux import clocks
from autopsy.linux.confine import sandbox
from autopsy.target import target
from autopsy.watch import ring

if TYPE_CHECKING:
    from autopsy.bundle.seal import Sealed

RESERVE = 0.25  # of the budget, kept for diagnosis, report and seal
MOST_RESERVE = 12.0
MOST_STARVED_RESERVE = 0.4  # of the budget, where the host is starved
LAST_COPYS_SHARE = 0.2  # of the budget that is left before the seal


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


def quietly(_: str) -> None:
    """Tell nobody."""


def capture(
    vm: target.Target,
    watch: EndWatch,
    *,
    options: Options,
    places: tuple[Path, ...],
    words: tuple[str, ...],
    watcher: Watcher,
    say: Callable[[str], None] = quietly,
) -> Captured:
    """Freeze, examine, diagnose, render and seal; nothing is killed here.

    `say` is told at once what is wrong with a place.

    Raises:
        NotStored: no place could be written to, or the bundle could not be sealed; the message says where the
            evidence lies.
    """
    began = clocks.now()
    budget = Deadline(options.budget)
    staging = prepare(layout.name_of(vm.record.name, began.utc), places, estimate(vm.record.pid, vm.process.ram_sizes))
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
    from autopsy.commands.sealing import begin_to_pack, put_beside, seal_staged  # noqa: PLC0415 - loaded meanwhile

    while True:
        known = watch.conclude(staging.work)
        if known is not None:
            from autopsy.capture import aftermath  # noqa: PLC0415 - loaded once a VM has ended by itself

            aftermath.take_what_is_left(vm, options, staging)
        note(steps)
        packer = begin_to_pack(staging, manifest, options, pace)
        judged = answers.diagnose(staging, budget, pace)
        if watch.conclude(staging.work) == known:  # it did not end while it was diagnosed
            break
        packer.give_up()
    staging.settled(min(SETTLE_SECONDS, budget.left() * LAST_COPYS_SHARE))  # the seal makes all of it durable
    note(steps)
    sealed = seal_staged(staging, manifest, budget, options, pace, packer=packer)
    page = _bytes(staging.work / layout.REPORT)
    beside = put_beside(page, report_path(sealed.path))
    end = watch.conclude(staging.work)
    if end is not None and manifest.end is None:
        staging.notes.append(f"{in_words(end)}: its evidence was sealed by then, and does not tell of it")
    staging.clear()
    report = beside.placed(budget, staging.notes)
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
