"""Everything that the HTML report shows, ready for its templates."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

from autopsy.bundle import names
from autopsy.bundle.archive import LARGE
from autopsy.bundle.records import FreezeRecord, Stop
from autopsy.bundle.schema import FileRecord, Manifest, StepRecord
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.seen import title
from autopsy.facts.cite import Cite, Known
from autopsy.facts.evidence import Evidence, records
from autopsy.facts.model import Facts
from autopsy.report import tables_around, tables_storage
from autopsy.report.drawing_path import PathDrawing, draw_path
from autopsy.report.drawing_timeline import TimelineDrawing, draw_timeline
from autopsy.report.drawing_waits import WaitsDrawing, draw_waits
from autopsy.report.excerpts import Excerpts
from autopsy.report.moments import Calendar, calendar
from autopsy.report.runbook import runbook
from autopsy.report.stacks import Group, coroutine_groups, thread_groups
from autopsy.report.table import Table
from autopsy.report.units import duration

# Where it is, as a person would say it.
PLACES = {
    "guest": "Stuck in the guest: QEMU owes it nothing",
    "device": "Stuck in QEMU's device model",
    "throttle": "Stuck in QEMU's I/O limits",
    "block": "Stuck in QEMU's block layer",
    "job": "Stuck in a block job",
    "aio": "Stuck in QEMU's asynchronous I/O",
    "host": "Stuck in the host's storage or kernel",
    "peer": "Stuck at a program that QEMU depends on",
    "migration": "Stuck in a migration",
    "control": "Stuck in QEMU's main loop or monitor",
    "process": "The whole process stands still",
    "vm-state": "The VM is paused, not stuck",
    "none": "Nothing is stuck",
    "unknown": "Where it is stuck cannot be told",
}
SURE = {
    "proven": "the mechanism itself was seen",
    "likely": "the evidence speaks for it, and for nothing else that was seen",
    "possible": "the evidence allows it, and does not decide",
}
SURE_OF_NOTHING = {
    "proven": "QEMU answers, and no sign of trouble was found",
    "likely": "no sign of trouble was found in what could be looked at",
    "possible": "no sign of trouble was found in the little that could be looked at",
}
MOST_HASHED = 32 << 20  # of a bundle that is not sealed yet


@dataclass(frozen=True, slots=True)
class Stalled:
    """How long the disks have completed nothing, or why that cannot be told."""

    words: str
    cites: tuple[Cite, ...] = ()


@dataclass(frozen=True, slots=True)
class Alike:
    """Signatures that one and the same reason speaks against, or that one and the same evidence would decide."""

    texts: tuple[str, ...]
    why: str
    cites: tuple[Cite, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """The report. Paths are sorted: those that are stuck come first, the others are folded."""

    manifest: Manifest
    diagnosis: Diagnosis
    place: str
    sure: str
    utc: str
    local: str
    kill: str
    stalled: Stalled
    calendar: Calendar
    stuck_paths: tuple[PathDrawing, ...]
    other_paths: tuple[PathDrawing, ...]
    waits: WaitsDrawing | None
    ruled_out: tuple[Alike, ...]
    cannot_tell: tuple[Alike, ...]
    timeline: TimelineDrawing | None
    threads: tuple[Group, ...]
    thread_count: int
    threads_why: str
    coroutines: tuple[Group, ...]
    coroutine_count: int
    coroutines_why: str
    tables: tuple[Table, ...]
    questions: Table
    runbook: Markup | None
    files: tuple[FileRecord, ...]
    excerpts: Excerpts

    @property
    def stuck(self) -> bool:
        """Tell whether anything is."""
        return self.diagnosis.where not in {"none", "vm-state"}

    @property
    def incomplete(self) -> tuple[StepRecord, ...]:
        """Return the steps that did not collect what they should."""
        return tuple(step for step in self.manifest.steps if step.outcome != "Collected")


def compose(bundle: Evidence, facts: Facts, diagnosis: Diagnosis, kill: str) -> Page:
    """Return the page of a bundle."""
    when = calendar(bundle.manifest.began)
    drawings = tuple(draw_path(path, number) for number, path in enumerate(diagnosis.paths, start=1))
    began = bundle.manifest.began.monotonic_ns
    return Page(
        manifest=bundle.manifest,
        diagnosis=diagnosis,
        place=PLACES[diagnosis.where],
        sure=(SURE_OF_NOTHING if diagnosis.where == "none" else SURE)[diagnosis.confidence],
        utc=when.utc(began, digits=0),
        local=when.host(began, digits=0),
        kill=_kill(kill, when),
        stalled=stalled_for(facts, diagnosis),
        calendar=when,
        stuck_paths=tuple(each for each in drawings if each.stuck),
        other_paths=tuple(each for each in drawings if not each.stuck),
        waits=draw_waits(diagnosis.waits),
        ruled_out=_alike((each.text, each.why, each.cites) for each in diagnosis.ruled_out),
        cannot_tell=_alike((each.text, each.missing, ()) for each in diagnosis.cannot_tell),
        timeline=draw_timeline(bundle.manifest, facts, _stops(bundle), when),
        threads=thread_groups(facts, diagnosis),
        thread_count=len(facts.threads.value) if isinstance(facts.threads, Known) else 0,
        threads_why="" if isinstance(facts.threads, Known) else facts.threads.why,
        coroutines=coroutine_groups(facts, diagnosis),
        coroutine_count=len(facts.coroutines.value) if isinstance(facts.coroutines, Known) else 0,
        coroutines_why="" if isinstance(facts.coroutines, Known) else facts.coroutines.why,
        tables=_tables(facts, diagnosis),
        questions=tables_around.questions(facts),
        runbook=runbook(diagnosis.signature),
        files=bundle.manifest.files or _unsealed(bundle),
        excerpts=Excerpts(bundle),
    )


def _tables(facts: Facts, diagnosis: Diagnosis) -> tuple[Table, ...]:
    return (
        tables_storage.disks(facts, diagnosis),
        tables_storage.operations(facts),
        tables_storage.throttle_groups(facts, diagnosis),
        tables_storage.jobs(facts),
        tables_storage.locks(facts),
        tables_storage.rings(facts),
        tables_around.descriptors(facts),
        tables_around.sockets(facts),
        tables_around.fuse(facts),
        tables_around.host(facts),
        tables_around.pressure(facts),
        tables_around.block_devices(facts),
        tables_around.mounts(facts),
        tables_around.log(facts),
    )


def _kill(words: str, when: Calendar) -> str:
    """Put the moment of the kill, which leads its sentence, on both clocks."""
    moment, colon, rest = words.partition(": ")
    return f"{when.both(moment)}: {rest}" if colon else words


def _alike(told: Iterable[tuple[str, str, tuple[Cite, ...]]]) -> tuple[Alike, ...]:
    """Gather signatures by the reason, keeping the order in which each reason came first."""
    texts: dict[tuple[str, tuple[Cite, ...]], list[str]] = {}
    for text, why, cites in told:
        texts.setdefault((why, cites), []).append(text)
    return tuple(Alike(tuple(them), why, cites) for (why, cites), them in texts.items())


def stalled_for(facts: Facts, diagnosis: Diagnosis) -> Stalled:
    """Say for how long the disks that the diagnosis names have completed nothing, by QEMU's own counters."""
    if diagnosis.where == "none":
        return Stalled("nothing is")
    stuck = {path.disk for path in diagnosis.paths if path.stuck_at is not None}
    found = []
    for disk in facts.disks.value if isinstance(facts.disks, Known) else ():
        stats = disk.stats.value if isinstance(disk.stats, Known) else None
        moved = isinstance(disk.completed, Known) and disk.completed.value > 0
        if title(disk) in stuck and stats is not None and not moved:
            if stats.idle_ns is not None:
                found.append((stats.idle_ns / 1e9, disk.name, stats.cite))
            elif not stats.completed:
                return Stalled(
                    f"cannot be told: disk {disk.name} has completed nothing since QEMU began", (stats.cite,)
                )
    if not found:
        return Stalled("cannot be told: no counter says when the last request completed")
    longest, name, cite = max(found)
    return Stalled(f"for {duration(longest)} when the capture began: disk {name} has completed nothing since", (cite,))


def apart(facts: Facts) -> float:
    """Return how many seconds lay between the two looks: those at the threads, for they were read at both."""
    for thread in facts.threads.value if isinstance(facts.threads, Known) else ():
        if isinstance(thread.movement, Known):
            return thread.movement.value.seconds
    return facts.times.gap_seconds


def _stops(bundle: Evidence) -> tuple[Stop, ...]:
    stops: list[Stop] = []
    for step in (names.FREEZE, names.SECOND_EXPOSURE):
        found = records(bundle, step, names.FREEZE_RECORD, FreezeRecord)
        stops += found.value.stops if isinstance(found, Known) else ()
    return tuple(stops)


def _unsealed(bundle: Evidence) -> tuple[FileRecord, ...]:
    """List the evidence of a bundle whose seal comes after this report; the core is told of by its name alone."""
    found = []
    left = MOST_HASHED
    for path in sorted(bundle.names()):
        if path in LARGE or not path.startswith("evidence/"):
            continue
        data = bundle.read(path)
        left -= len(data)
        if left < 0:
            break
        found.append(FileRecord(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest()))
    return tuple(found)
