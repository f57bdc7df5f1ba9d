"""Everything that the HTML report shows, ready for its templates."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterable
from pathlib import PurePosixPath

from markupsafe import Markup

from autopsy.bundle import layout
from autopsy.bundle.archive import LARGE
from autopsy.bundle.manifest import FileRecord, Manifest, StepRecord
from autopsy.bundle.records import FreezeRecord, Stop
from autopsy.bundle.vm_end import in_words
from autopsy.dataclass import dataclass
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.facts.cite import Cite, Known
from autopsy.facts.evidence import Evidence, records
from autopsy.facts.model.facts import Facts
from autopsy.report import tables_host, tables_storage
from autopsy.report.clock_text import Calendar, calendar
from autopsy.report.draw.minute_before import MinuteDrawing, draw_minute
from autopsy.report.draw.request_path import PathDrawing, draw_path
from autopsy.report.draw.timeline import TimelineDrawing, draw_timeline
from autopsy.report.draw.wait_graph import WaitsDrawing, draw_waits
from autopsy.report.excerpts import Excerpts
from autopsy.report.first_screen import KILLS, AdviceGroup, doing, headline
from autopsy.report.proof.proofs import Proof, proofs
from autopsy.report.runbook import runbook
from autopsy.report.stacks import Group, coroutine_groups, thread_groups
from autopsy.report.table import Table
from autopsy.report.wording import PLACES, SURE, SURE_OF_NOTHING, Stalled, stalled_for

MOST_HASHED = 32 << 20  # of a bundle that is not sealed yet


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
    headline: str
    proofs: tuple[Proof, ...]
    doing: tuple[AdviceGroup, ...]
    kill_effect: str
    place: str
    sure: str
    utc: str
    local: str
    kill: str
    kill_badge: str
    seen: str
    stalled: Stalled
    calendar: Calendar
    stuck_paths: tuple[PathDrawing, ...]
    other_paths: tuple[PathDrawing, ...]
    waits: WaitsDrawing | None
    ruled_out: tuple[Alike, ...]
    cannot_tell: tuple[Alike, ...]
    timeline: TimelineDrawing | None
    minute: MinuteDrawing | None
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
    bundle: str
    command: str

    @property
    def stuck(self) -> bool:
        """Tell whether anything is."""
        return self.diagnosis.where not in {"none", "vm-state"}

    @property
    def incomplete(self) -> tuple[StepRecord, ...]:
        """Return the steps that did not collect what they should."""
        return tuple(step for step in self.manifest.steps if step.outcome != "Collected")


def compose(bundle: Evidence, facts: Facts, diagnosis: Diagnosis, kill: str, seen: str = "") -> Page:
    """Return the page of a bundle; `seen` says how often others like it were met, empty where nobody knows."""
    when = calendar(bundle.manifest.began)
    drawings = tuple(draw_path(path, number) for number, path in enumerate(diagnosis.paths, start=1))
    began = bundle.manifest.began.monotonic_ns
    return Page(
        manifest=bundle.manifest,
        diagnosis=diagnosis,
        headline=headline(diagnosis),
        proofs=proofs(bundle, diagnosis),
        doing=doing(diagnosis),
        kill_effect="" if diagnosis.where == "none" else KILLS[diagnosis.kill],
        place=PLACES[diagnosis.where],
        sure=(SURE_OF_NOTHING if diagnosis.where == "none" else SURE)[diagnosis.confidence],
        utc=when.utc(began, digits=0),
        local=when.host(began, digits=0),
        kill=told_kill(kill, when) or _by_itself(bundle.manifest),
        seen=seen,
        kill_badge=kill_badge(kill, when) if kill else _not_killed(bundle.manifest),
        stalled=stalled_for(facts, diagnosis),
        calendar=when,
        stuck_paths=tuple(drawing for drawing in drawings if drawing.stuck),
        other_paths=tuple(drawing for drawing in drawings if not drawing.stuck),
        waits=draw_waits(diagnosis.waits),
        ruled_out=_alike((signature.text, signature.why, signature.cites) for signature in diagnosis.ruled_out),
        cannot_tell=_alike((signature.text, signature.missing, ()) for signature in diagnosis.cannot_tell),
        timeline=draw_timeline(bundle.manifest, facts, _stops(bundle), when),
        minute=draw_minute(facts, when),
        threads=thread_groups(facts, diagnosis),
        thread_count=len(facts.threads.value) if isinstance(facts.threads, Known) else 0,
        threads_why="" if isinstance(facts.threads, Known) else facts.threads.why,
        coroutines=coroutine_groups(facts, diagnosis),
        coroutine_count=len(facts.coroutines.value) if isinstance(facts.coroutines, Known) else 0,
        coroutines_why="" if isinstance(facts.coroutines, Known) else facts.coroutines.why,
        tables=_tables(facts, diagnosis),
        questions=tables_host.questions(facts),
        runbook=runbook(PurePosixPath(diagnosis.runbook).stem),
        files=bundle.manifest.files or _unsealed(bundle),
        excerpts=Excerpts(bundle),
        bundle=f"{layout.name_of(bundle.manifest.target.name, bundle.manifest.began.utc)}.tar.zst",
        command=shlex.join(("autopsy", *bundle.manifest.options)) if bundle.manifest.options else "",
    )


def _tables(facts: Facts, diagnosis: Diagnosis) -> tuple[Table, ...]:
    return (
        tables_storage.disks(facts, diagnosis),
        tables_storage.operations(facts),
        tables_storage.throttle_groups(facts, diagnosis),
        tables_storage.jobs(facts),
        tables_storage.locks(facts),
        tables_storage.rings(facts),
        tables_host.descriptors(facts),
        tables_host.sockets(facts),
        tables_host.fuse(facts),
        tables_host.host(facts),
        tables_host.pressure(facts),
        tables_host.block_devices(facts),
        tables_host.mounts(facts),
        tables_host.log(facts),
    )


def told_kill(words: str, when: Calendar) -> str:
    """Put the moment of the kill, which leads its sentence, on both clocks."""
    moment, colon, rest = words.partition(": ")
    return f"{when.both(moment)}: {rest}" if colon else words


def kill_badge(words: str, when: Calendar) -> str:
    """Say in a word that a kill was sent, and at which time of the day."""
    return f"kill sent {when.time_of_day(words.partition(': ')[0])}".rstrip()


def _not_killed(manifest: Manifest) -> str:
    if manifest.end:
        return "ended by itself"
    return "not known whether killed" if manifest.imported else "not killed"


def _by_itself(manifest: Manifest) -> str:
    return f"no: it ended by itself. {in_words(manifest.end)}" if manifest.end else ""


def _alike(reasons: Iterable[tuple[str, str, tuple[Cite, ...]]]) -> tuple[Alike, ...]:
    """Gather signatures by the reason, keeping the order in which each reason came first."""
    texts: dict[tuple[str, tuple[Cite, ...]], list[str]] = {}
    for text, why, cites in reasons:
        texts.setdefault((why, cites), []).append(text)
    return tuple(Alike(tuple(them), why, cites) for (why, cites), them in texts.items())


def _stops(bundle: Evidence) -> tuple[Stop, ...]:
    stops: list[Stop] = []
    for step in (layout.FREEZE, layout.SECOND_EXPOSURE):
        freeze = records(bundle, step, layout.FREEZE_RECORD, FreezeRecord)
        stops += freeze.value.stops if isinstance(freeze, Known) else ()
    return tuple(stops)


def _unsealed(bundle: Evidence) -> tuple[FileRecord, ...]:
    """List the evidence of a bundle whose seal comes after this report; the core is told of by its name alone."""
    files = []
    left = MOST_HASHED
    for path in sorted(bundle.names()):
        if path in LARGE or not path.startswith("evidence/"):
            continue
        data = bundle.read(path)
        left -= len(data)
        if left < 0:
            break
        files.append(FileRecord(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest()))
    return tuple(files)
