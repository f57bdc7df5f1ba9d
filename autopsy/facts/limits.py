"""What a capture left out because it would have been too much: where a limit of ours bit, nothing is told as whole."""

from __future__ import annotations

from collections.abc import Iterator

from autopsy.bundle import layout, records
from autopsy.facts.cite import Cite, Known
from autopsy.facts.evidence import Evidence, section_map
from autopsy.facts.evidence import records as decode
from autopsy.facts.model.left_out import LeftOut

REST = " (rest)"  # how the readers name what they did not read
SECTIONED = (
    (layout.WITNESS, layout.FDS),
    (layout.PROC_FDS, layout.FDS),
    (layout.HOST, layout.HOST_FILES),
)


def gather(evidence: Evidence) -> tuple[LeftOut, ...]:
    """Return every limit that the bundle says has bitten."""
    return (*_of_the_core(evidence), *_of_sections(evidence))


def _of_the_core(evidence: Evidence) -> Iterator[LeftOut]:
    listed = decode(evidence, layout.GDB_THREADS, layout.COROUTINES, tuple[records.Coroutine, ...])
    counted = len(listed.value) if isinstance(listed, Known) else 0
    for step in (layout.FREEZE, layout.SECOND_EXPOSURE):
        found = decode(evidence, step, layout.FREEZE_RECORD, records.FreezeRecord)
        if not isinstance(found, Known) or not found.value.beyond_cap:
            continue
        lacking = found.value.coroutine_stacks - counted
        why = "; ".join(f"{region.path or 'memory of no name'}: {region.why}" for region in found.value.beyond_cap[:4])
        if lacking > 0:
            why = f"of {found.value.coroutine_stacks} coroutines' stacks {lacking} are of none that was found; {why}"
        yield LeftOut("there is more in QEMU's memory than is told", why, requests=lacking > 0, cite=found.cite)


def _of_sections(evidence: Evidence) -> Iterator[LeftOut]:
    for step, file in SECTIONED:
        path = layout.evidence(step, file)
        for name, section in section_map(evidence, step, file).items():
            if name.endswith(REST) and section.error:
                what = f"there is more of {name.removesuffix(REST)} than is told"
                yield LeftOut(what, section.error, requests=False, cite=Cite(path, section.line, name))
