"""Read the completion rings of Linux AIO out of the core: they are of the same moment as the stacks."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from itertools import islice

import msgspec

from autopsy.bundle import layout
from autopsy.bundle.records import AioRing, LeftOut, Rings
from autopsy.examine.core.reader import PAGE, Core, CoreError
from autopsy.examine.states import freeze_record
from autopsy.examine.view import View

# struct aio_ring (fs/aio.c): id, nr, head, tail, magic, compat_features, incompat_features, header_length.
RING = struct.Struct("<8I")
MAGIC = 0xA10A10A1
MOST_RINGS = 1024
MAPPED = re.compile(rb"^([0-9a-f]{1,16})-[0-9a-f]+ .* /\[aio\]", re.MULTILINE)


def examine_aio_rings(view: View) -> Rings:
    """Write rings.json, and return what it says. io_uring's rings are the kernel's, and in no core."""
    maps = view.frozen.read(layout.evidence(layout.WITNESS, layout.MAPS))
    aio_rings = tuple(islice(find_aio_rings(view.core, maps), MOST_RINGS + 1))
    if len(aio_rings) > MOST_RINGS:
        view.left_out.append(LeftOut(what="there are more AIO rings than are told", why=f"{MOST_RINGS} were read"))
    rings = Rings(
        aio=aio_rings[:MOST_RINGS],
        uring=(),
        taken_ns=freeze_record(view.frozen.read).frozen_at_ns,
    )
    if rings.aio:
        view.frozen.write(layout.RINGS, msgspec.json.format(msgspec.json.encode(rings), indent=1) + b"\n")
    return rings


def find_aio_rings(core: Core, maps: bytes) -> Iterator[AioRing]:
    """Yield the rings: where the maps say that one is, and wherever a mapping begins with a ring's magic."""
    mapped = {int(match[1], 16) for match in MAPPED.finditer(maps)}
    named = {file.start for file in core.files if file.path.startswith("/[aio]")}
    begun = {load.start for load in core.loads if load.writable and load.start % PAGE == 0}
    for address in sorted(mapped | named | begun):
        ring = _ring(core, address)
        if ring is not None and (ring.valid or address in mapped | named):
            yield ring


def _ring(core: Core, address: int) -> AioRing | None:
    try:
        data = core.read(address, RING.size)
    except CoreError:
        return None
    context_id, entries, head, tail, magic, _, _, header_size = RING.unpack(data)
    return AioRing(
        address=address,
        context_id=context_id,
        entries=entries,
        head=head,
        tail=tail,
        valid=magic == MAGIC and header_size == RING.size and head < entries and tail < entries,
    )
