"""Diagnoses every bundle of some sources that the index does not have yet, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from autopsy.dataclass import dataclass
from autopsy.fleet.engine.chunk import run_chunk
from autopsy.fleet.engine.order import MEMORY, SECONDS, ChunkDone, ChunkOrder
from autopsy.fleet.index import parts
from autopsy.fleet.index.local import local_parts
from autopsy.fleet.places.sources import WHOLE, Shard, SourceBundle, list_bundles

CHUNK = 500  # bundles: some seconds to some minutes of work, which is what a run that is cut off loses


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetRun:
    """What to diagnose, where the rows go, and how; `again` takes up those once more that could not be diagnosed."""

    sources: tuple[str, ...]
    into: str
    analyzer: str = ""
    shard: Shard = WHOLE
    chunk: int = CHUNK
    jobs: int = 1
    seconds: float = SECONDS
    memory: int = MEMORY
    host_key: bytes = b""
    named: bool = False
    identity: str = ""
    again: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """The chunks to do, how many bundles those are, and how many the index has already."""

    chunks: tuple[ChunkOrder, ...]
    bundles: int
    known: int


def plan(run: FleetRun) -> Plan:
    """Say what is left to do.

    Raises:
        UsageError: there is nothing at one of the sources.
        AutopsyError: a place cannot be listed or read.
    """
    analyzer = run.analyzer or parts.this_analyzer()
    known = parts.stamps(local_parts(run.into, analyzer), errors=not run.again)
    listed = tuple(list_bundles(run.sources, run.shard))
    left = [bundle for bundle in listed if bundle.stamp not in known]
    return Plan(
        tuple(
            ChunkOrder(
                bundles=bundles,
                into=run.into,
                analyzer=analyzer,
                jobs=run.jobs,
                seconds=run.seconds,
                memory=run.memory,
                host_key=run.host_key.hex(),
                named=run.named,
                identity=run.identity,
            )
            for bundles in _chunks(left, run.chunk)
        ),
        bundles=len(left),
        known=len(listed) - len(left),
    )


def here(orders: Iterable[ChunkOrder]) -> Iterator[ChunkDone]:
    """Do one chunk after the other on this host: the engine that needs nothing."""
    yield from map(run_chunk, orders)


def _chunks(bundles: Iterable[SourceBundle], size: int) -> Iterator[tuple[SourceBundle, ...]]:
    left = iter(bundles)
    while chunk := tuple(islice(left, size)):
        yield chunk
