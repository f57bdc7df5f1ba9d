"""What the file systems of the VM's images lie on, where that is a file of the host's again."""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from autopsy.bundle import layout
from autopsy.bundle.records import LoopLayer
from autopsy.facts.cite import Cite
from autopsy.facts.evidence import Evidence, section_map
from autopsy.facts.model.facts import LayerFact
from autopsy.facts.storage.mounts import mounts_told

TEXT = layout.evidence(layout.PROC_FDS, layout.SOCKETS)
NUMBERED = re.compile(r"layer/\d+")


def gather_layers(evidence: Evidence) -> tuple[LayerFact, ...]:
    """Return every such layer that was found; a bundle older than the search for them has none."""
    return tuple(_layers(evidence))


def _layers(evidence: Evidence) -> Iterator[LayerFact]:
    for name, section in section_map(evidence, layout.PROC_FDS, layout.SOCKETS).items():
        if not NUMBERED.fullmatch(name):
            continue
        try:
            layer = msgspec.json.decode(section.data, type=LoopLayer)
        except msgspec.DecodeError:
            continue
        for mount in mounts_told(TEXT, section.line, layer.mount):
            yield LayerFact(
                above=layer.above, loop=layer.loop, file=layer.file, mount=mount, cite=Cite(TEXT, section.line, name)
            )
