"""Edges of block jobs: one that does not go on waits for its own requests."""

from __future__ import annotations

from collections.abc import Iterator

from autopsy.diagnose.waits.requests import standing
from autopsy.diagnose.waits.wait import Certainty, How, Wait
from autopsy.facts import subjects
from autopsy.facts.cite import Known
from autopsy.facts.model.facts import Facts
from autopsy.facts.model.yield_points import BEHIND, DISK_PARKS


def job_waits(facts: Facts) -> Iterator[Wait]:
    """Yield one edge for each of them; where nothing tells a job's requests, any that is no disk's may be one."""
    for job in facts.jobs.value if isinstance(facts.jobs, Known) else ():
        if job.paused or not (isinstance(job.progressed, Known) and job.progressed.value == 0):
            continue
        requests = tuple(standing(facts, DISK_PARKS - BEHIND))
        mine = [request for request in requests if request.of_job] or requests
        for request in mine:
            cites = (job.cite, request.cite)
            yield Wait(subjects.Job(job.id), subjects.Request(request.address), How.POLLS_FOR, Certainty.ONCE, cites)
