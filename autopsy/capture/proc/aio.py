"""The completion rings of Linux AIO and io_uring, and the counters beside them."""

from __future__ import annotations

import os
import re
import struct
import time
from collections.abc import Iterator, Mapping
from functools import partial

from autopsy.bundle import layout
from autopsy.bundle.records import AioRing, LeftOut, Rings, UringState
from autopsy.bundle.sections import Section
from autopsy.capture.proc.thread_waits import MEMORY, read_memory
from autopsy.capture.reading.procfs import OPEN, ProcDirectory, read_file
from autopsy.capture.reading.reader import ReadFailures, SectionRead, store, take
from autopsy.capture.step import Scene

HOST_COUNTERS = ("sys/fs/aio-nr", "sys/fs/aio-max-nr")  # below /proc
OF_THE_PROCESS = ("io", "status")
IO_URING = b"anon_inode:[io_uring]"
RING_LINE = re.compile(rb"^([0-9a-f]+)-[0-9a-f]+ .* /\[aio\]", re.MULTILINE)
MOST_RINGS = 1024

# struct aio_ring (fs/aio.c): id, nr, head, tail, magic, compat_features, incompat_features, header_length.
RING = struct.Struct("<8I")
MAGIC = 0xA10A10A1

FIELD = re.compile(r"^(\w+):[ \t]*(.*)$", re.MULTILINE)


def collect_aio(
    scene: Scene, process: ProcDirectory, descriptors: Mapping[str, Section], maps: bytes, trouble: ReadFailures
) -> None:
    """Store aio.txt and rings.json, given the sections of a fds.txt and the maps that the witness read."""
    rings_of_uring = sorted(
        int(name[3:]) for name, section in descriptors.items() if name.startswith("fd/") and section.data == IO_URING
    )
    rings = store(scene, layout.AIO, _reads(process, rings_of_uring), trouble)
    if not maps:
        trouble.notes.append("there are no maps, so no AIO ring could be looked for")
    mapped = [int(match[1], 16) for match in RING_LINE.finditer(maps)]
    addresses = mapped[:MOST_RINGS]
    if (left := len(mapped) - MOST_RINGS) > 0:
        scene.leave_out(LeftOut(what="there are more AIO rings than are told", why=f"{left} were not read"))
    memory = take([SectionRead("rings", partial(_headers, process, addresses), MEMORY)], scene.deadline, trouble)[
        "rings"
    ]
    if memory.error and addresses:
        trouble.notes.append(f"the AIO rings: {memory.error}")
    headers = [memory.data[place : place + RING.size] for place in range(0, len(memory.data), RING.size)]
    scene.write_json(
        layout.RINGS,
        Rings(
            aio=tuple(aio_ring(address, header) for address, header in zip(addresses, headers, strict=False)),
            uring=tuple(
                uring_state(fd, section.data) for fd in rings_of_uring if not (section := rings[f"fdinfo/{fd}"]).error
            ),
            taken_ns=time.monotonic_ns(),
        ),
    )


def _reads(process: ProcDirectory, rings_of_uring: list[int]) -> Iterator[SectionRead]:
    for path in HOST_COUNTERS:
        yield SectionRead(path, partial(read_file, f"/proc/{path}"))
    for path in OF_THE_PROCESS:
        yield SectionRead(path, partial(process.read, path))
    for fd in rings_of_uring:
        yield SectionRead(f"fdinfo/{fd}", partial(process.read, f"fdinfo/{fd}"))


def _headers(process: ProcDirectory, addresses: list[int]) -> bytes:
    memory = os.open("mem", OPEN, dir_fd=process.folder)
    return b"".join(read_memory(memory, address, RING.size).ljust(RING.size, b"\0") for address in addresses)


def aio_ring(address: int, header: bytes) -> AioRing:
    """Read the header of one ring. Not `valid`: it is no ring (any more), or it contradicts itself."""
    context_id, entries, head, tail, magic, _, _, _ = RING.unpack(header)
    valid = magic == MAGIC and head < entries and tail < entries
    return AioRing(address=address, context_id=context_id, entries=entries, head=head, tail=tail, valid=valid)


def uring_state(fd: int, fdinfo: bytes) -> UringState:
    """Read the fdinfo of one io_uring; a field that this kernel does not print is absent."""
    raw = {name: value.strip() for name, value in FIELD.findall(fdinfo.decode("utf-8", "replace"))}
    return UringState(
        fd=fd,
        raw=raw,
        sq_head=_number(raw, "SqHead"),
        sq_tail=_number(raw, "SqTail"),
        cq_head=_number(raw, "CqHead"),
        cq_tail=_number(raw, "CqTail"),
    )


def _number(raw: Mapping[str, str], field: str) -> int | None:
    word = raw.get(field, "")
    return int(word) if word.isdecimal() else None
