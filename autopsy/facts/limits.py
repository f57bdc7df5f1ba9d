"""What a capture left out because it would have been too much: where a limit of ours bit, nothing is told as whole."""

from __future__ import annotations

from collections.abc import Iterator

from autopsy.bundle import layout, records
from autopsy.bundle.heap import records as heap_records
from autopsy.bundle.heap.virtio import RingsLook
from autopsy.bundle.sections import REST
from autopsy.facts.cite import Cite, Known
from autopsy.facts.evidence import Evidence, section_map
from autopsy.facts.evidence import records as decode
from autopsy.facts.model.left_out import LeftOutFact

STEPS = (*layout.STEPS, layout.UNSTABLE)
# Whatever facts are made of and that is stored in sections; of logs the end is taken, on purpose.
SECTIONED = (layout.TASKS, layout.FDS, layout.SOCKETS, layout.IMAGES, layout.AIO, layout.HOST_FILES)
FOR_EYES = frozenset({"ss"})
MARK = REST.encode() + b" (unreadable"


def gather_limits(evidence: Evidence) -> tuple[LeftOutFact, ...]:
    """Return every limit that the bundle says has bitten."""
    return (
        *_of_the_core(evidence),
        *_of_steps(evidence),
        *_of_sections(evidence),
        *_of_the_heap(evidence),
        *_of_rings(evidence),
    )


def _of_the_core(evidence: Evidence) -> Iterator[LeftOutFact]:
    listed = decode(evidence, layout.GDB_THREADS, layout.COROUTINES, tuple[records.Coroutine, ...])
    counted = len(listed.value) if isinstance(listed, Known) else 0
    for step in (layout.FREEZE, layout.SECOND_EXPOSURE):
        freeze = decode(evidence, step, layout.FREEZE_RECORD, records.FreezeRecord)
        if not isinstance(freeze, Known) or not freeze.value.beyond_cap:
            continue
        lacking = freeze.value.coroutine_stacks - counted
        why = "; ".join(f"{region.path or 'memory of no name'}: {region.why}" for region in freeze.value.beyond_cap[:4])
        if lacking > 0:
            why = f"of {freeze.value.coroutine_stacks} coroutines' stacks {lacking} are of none that was found; {why}"
        yield LeftOutFact("there is more in QEMU's memory than is told", why, requests=lacking > 0, cite=freeze.cite)


def _of_steps(evidence: Evidence) -> Iterator[LeftOutFact]:
    for step in STEPS:
        left_out = decode(evidence, step, layout.LEFT_OUT, tuple[records.LeftOut, ...])
        if isinstance(left_out, Known):
            yield from (LeftOutFact(entry.what, entry.why, entry.requests, left_out.cite) for entry in left_out.value)


def _of_sections(evidence: Evidence) -> Iterator[LeftOutFact]:
    for step in STEPS:
        for file in SECTIONED:
            path = layout.evidence(step, file)
            if MARK not in evidence.read(path):
                continue
            for name, section in section_map(evidence, step, file).items():
                of = name.removesuffix(REST)
                if of in {name, *FOR_EYES} or not section.error:
                    continue
                cite = Cite(path, section.line, name)
                yield LeftOutFact(f"there is more of {of} than is told", section.error, requests=False, cite=cite)


def _of_the_heap(evidence: Evidence) -> Iterator[LeftOutFact]:
    heap = decode(evidence, layout.GDB_THREADS, layout.HEAP, heap_records.Heap)
    if isinstance(heap, Known):
        cut = dict.fromkeys(what for walk in (heap.value.first, heap.value.second) if walk for what in walk.cut)
        for what in cut:
            yield LeftOutFact("a list of QEMU's is longer than is told", what, requests=True, cite=heap.cite)


def _of_rings(evidence: Evidence) -> Iterator[LeftOutFact]:
    look = decode(evidence, layout.SECOND_EXPOSURE, layout.RING_WORDS, RingsLook)
    if isinstance(look, Known) and look.value.more:
        why = f"{look.value.more} were not read"
        yield LeftOutFact("there are more queues than those whose rings are told", why, requests=False, cite=look.cite)
