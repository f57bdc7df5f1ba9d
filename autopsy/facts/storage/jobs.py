"""Block jobs, and whether they came further between the two snapshots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopsy.bundle import layout
from autopsy.bundle.heap import records as heap_records
from autopsy.facts import monitor
from autopsy.facts.cite import Cite, Fact, Known, Unknown
from autopsy.facts.model.facts import JobFact, MonitorFact
from autopsy.facts.untrusted import mapping, number, sequence, text

# query-jobs, then query-block-jobs: the same job in two vocabularies.
PROGRESS = ("current-progress", "offset")
TOTAL = ("total-progress", "len")


def gather_jobs(talk: MonitorFact, heap: Fact[heap_records.HeapSnapshot]) -> Fact[tuple[JobFact, ...]]:
    """Return the jobs that query-jobs (or query-block-jobs, or the heap) lists."""
    for question in ("query-jobs", "query-block-jobs"):
        listed = monitor.answer(talk, question)
        if not isinstance(listed, Known):
            continue
        later = monitor.answer(talk, question, again=True)
        speeds = _speeds(talk)
        return Known(
            tuple(_job(job, listed.cite, later, speeds) for job in map(mapping, sequence(listed.value))), listed.cite
        )
    for question in ("query-jobs", "query-block-jobs"):
        listed = monitor.answer(talk, question, again=True)
        if isinstance(listed, Known):
            only = Unknown(layout.evidence(layout.QUERY_STATUS, layout.QMP), "query-jobs was not answered at first")
            return Known(
                tuple(_job(job, listed.cite, only, {}) for job in map(mapping, sequence(listed.value))), listed.cite
            )
    if isinstance(heap, Known):
        cite = Cite(layout.evidence(layout.GDB_THREADS, layout.HEAP), 0, "jobs")
        only = Unknown(layout.evidence(layout.SECOND_EXPOSURE, layout.QMP), "query-jobs was not answered")
        jobs = (
            JobFact(
                id=job.id,
                kind=job.type,
                status=job.status,
                current=job.progress_current,
                total=job.progress_total,
                paused=job.user_paused,  # a drain pauses jobs, too, and nobody is to say a word then
                error="",
                progressed=only,
                speed=0,
                cite=cite,
            )
            for job in heap.value.jobs
        )
        return Known(tuple(jobs), cite)
    missing = monitor.answer(talk, "query-jobs")
    return missing if isinstance(missing, Unknown) else Unknown(missing.cite.file, "query-jobs told nothing")


def _speeds(talk: MonitorFact) -> dict[str, int]:
    """Return the limit of each job that has one, in bytes a second: only query-block-jobs tells it."""
    listed = monitor.answer(talk, "query-block-jobs")
    jobs = map(mapping, sequence(listed.value)) if isinstance(listed, Known) else ()
    return {text(job.get("device")): number(job.get("speed")) for job in jobs}


def _job(job: dict[str, Any], cite: Cite, later: Fact[Any], speeds: Mapping[str, int]) -> JobFact:
    identity = text(job.get("id")) or text(job.get("device"))
    current = _first(job, PROGRESS)
    status = text(job.get("status"))
    progressed: Fact[int]
    if isinstance(later, Unknown):
        progressed = later
    else:
        again = [job for job in map(mapping, sequence(later.value)) if identity in {job.get("id"), job.get("device")}]
        progressed = (
            Known(_first(again[0], PROGRESS) - current, later.cite)
            if again
            else Unknown(later.cite.file, "the job was gone at the second snapshot")
        )
    return JobFact(
        id=identity,
        kind=text(job.get("type")),
        status=status,
        current=current,
        total=_first(job, TOTAL),
        paused=job.get("paused") is True or status in {"paused", "standby"},
        error=text(job.get("error")),
        progressed=progressed,
        speed=speeds.get(identity, 0),
        cite=Cite(cite.file, cite.line, f"job {identity}: {status}"),
    )


def _first(job: dict[str, Any], keys: tuple[str, ...]) -> int:
    return next((number(job[key]) for key in keys if key in job), 0)
