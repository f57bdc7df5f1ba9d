"""Completion rings at both looks."""

from __future__ import annotations

from autopsy.bundle import layout, records
from autopsy.facts.cite import Cite, Fact, Known, Unknown
from autopsy.facts.evidence import Evidence
from autopsy.facts.evidence import records as decode
from autopsy.facts.model.facts import RingsFact

PLACES = (layout.WITNESS, layout.PROC_AIO, layout.GDB_THREADS, layout.SECOND_EXPOSURE)


def gather_rings(evidence: Evidence) -> Fact[RingsFact]:
    """Return the rings as the earliest and the latest reading have them."""
    readings: list[Known[records.Rings]] = []
    missing: Unknown | None = None
    for step in PLACES:
        record = decode(evidence, step, layout.RINGS, records.Rings)
        if isinstance(record, Known):
            readings.append(record)
        elif step == layout.PROC_AIO:
            missing = record
    if not readings:
        return missing or Unknown(layout.evidence(layout.PROC_AIO, layout.RINGS), "no reading of the rings")
    readings.sort(key=lambda record: record.value.taken_ns)
    first, last = readings[0], readings[-1]
    return Known(
        RingsFact(
            aio=tuple(ring for ring in first.value.aio if ring.valid),
            aio_again=tuple(ring for ring in last.value.aio if ring.valid),
            uring=first.value.uring,
            uring_again=last.value.uring,
            both=len(readings) > 1,
            cite=Cite(last.cite.file, 0, "completion rings"),
        ),
        last.cite,
    )
