"""The last minute of samples that a watch had taken of the VM."""

from __future__ import annotations

from autopsy.bundle import layout
from autopsy.bundle.ring import SCHEMA, Ring, decode
from autopsy.facts.cite import Cite, Fact, Known, Unknown
from autopsy.facts.evidence import Evidence

MOST_SAMPLES = 600  # the newest; a watch keeps fewer


def gather_ring(evidence: Evidence) -> Fact[Ring]:
    """Return the ring, its samples in the order of time; Unknown where no watch ran, or it is of another process."""
    path = layout.evidence(layout.WATCH, layout.RING)
    data = evidence.read(path)
    if not data:
        return Unknown(path, "no watch had an eye on this VM before")
    try:
        ring = decode(data)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        return Unknown(path, f"damaged: {error}")
    target = evidence.manifest.target
    if ring.header.schema > SCHEMA or (ring.header.pid, ring.header.start_ticks) != (target.pid, target.start_ticks):
        return Unknown(path, "it is of another process, or of a newer watch")
    samples = sorted(ring.samples, key=lambda sample: sample.monotonic_ns)[-MOST_SAMPLES:]
    return Known(Ring(ring.header, tuple(samples)), Cite(path))
