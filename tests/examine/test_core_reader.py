from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopsy.examine.core.reader import Core, CoreError, NotInCore

PAGE = 4096


def prstatus(tid: int, pc: int = 0x401000, sp: int = 0x7FFF0000) -> bytes:
    registers = [0] * 27
    registers[16], registers[19] = pc, sp
    return struct.pack("<32xI76x27Qi4x", tid, *registers, 0)


def note(kind: int, body: bytes) -> bytes:
    return struct.pack("<III", 5, len(body), kind) + b"CORE\0\0\0\0" + body + b"\0" * (-len(body) % 4)


def mapped(*entries: tuple[int, int, int, str]) -> bytes:
    ranges = b"".join(struct.pack("<QQQ", start, end, offset // PAGE) for start, end, offset, _ in entries)
    names = b"".join(name.encode() + b"\0" for *_, name in entries)
    return struct.pack("<QQ", len(entries), PAGE) + ranges + names


def core_bytes(
    segments: list[tuple[int, int, bytes]], notes: bytes = b"", *, escaped: bool = False, flags: int = 6
) -> bytes:
    """Return a core with (address, size in memory, bytes that are there) for each segment."""
    count = len(segments) + 1
    at = 64 + 56 * count + (64 if escaped else 0)
    headers = [struct.pack("<IIQQQQQQ", 4, 0, at, 0, 0, len(notes), 0, 4)]
    body = notes
    for address, size, data in segments:
        headers.append(struct.pack("<IIQQQQQQ", 1, flags, at + len(body), address, 0, len(data), size, 1))
        body += data
    sections_at = 64 + 56 * count if escaped else 0
    section = struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, count, 0, 0) if escaped else b""
    start = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01" + b"\0" * 9,
        *(4, 62, 1, 0, 64, sections_at, 0, 64, 56, 0xFFFF if escaped else count, 64, 1 if escaped else 0, 0),
    )
    return start + b"".join(headers) + section + body


def test_a_read_joins_segments_that_touch() -> None:
    core = Core.of(core_bytes([(0x1000, 4, b"abcd"), (0x1004, 4, b"efgh")]))
    assert core.read(0x1002, 4) == b"cdef"
    assert core.word(0x1000) == int.from_bytes(b"abcdefgh", "little")


def test_bytes_that_were_not_frozen_are_absent_and_not_zero() -> None:
    core = Core.of(core_bytes([(0x1000, 16, b"abcd")]))
    assert core.load_at(0x100C) is not None
    assert core.holds(0x1000, 4)
    assert not core.holds(0x1000, 5)
    for address, size in ((0x1000, 5), (0x1004, 1), (0xFFF, 2), (0x2000, 1), (0, 1)):
        with pytest.raises(NotInCore):
            core.read(address, size)


def test_reading_here_and_there_in_a_large_core_does_not_bring_all_of_it_into_memory(tmp_path: Path) -> None:
    size, address = 128 << 20, 0x10000
    at = len(core_bytes([(address, size, b"")]))
    file = tmp_path / "core"
    header = bytearray(core_bytes([(address, size, b"")]))
    struct.pack_into("<Q", header, 64 + 56 + 32, size)  # p_filesz
    file.write_bytes(header)
    with file.open("r+b") as stream:
        stream.truncate(at + size)
    core = Core(file)
    before = most = file_pages()
    for place in range(address, address + size, 32 << 10):
        assert core.word(place) == 0
        most = max(most, file_pages())
    assert most - before < 48 << 20


def file_pages() -> int:
    return int(Path("/proc/self/statm").read_text().split()[2]) * PAGE


def test_a_string_ends_at_its_nul_or_where_the_bytes_end() -> None:
    core = Core.of(core_bytes([(0x1000, 16, b"hello\0world")]))
    assert core.string(0x1000) == "hello"
    assert core.string(0x1006) == "world"


def test_threads_files_and_auxv_come_from_the_notes() -> None:
    notes = note(1, prstatus(42)) + note(6, struct.pack("<QQQQ", 25, 0x7FF0, 0, 0))
    notes += note(1, prstatus(43, pc=5)) + note(0x46494C45, mapped((0x1000, 0x3000, 0x2000, "/usr/bin/q")))
    core = Core.of(core_bytes([(0x1000, 4, b"abcd")], notes))
    assert [thread.tid for thread in core.threads] == [42, 43]
    assert core.threads[1].registers.rip == 5
    assert core.auxv[25] == 0x7FF0
    assert (core.files[0].offset, core.files[0].path) == (0x2000, "/usr/bin/q")


def test_more_segments_than_e_phnum_can_count_are_all_read() -> None:
    segments = [(0x10000 * (i + 1), 2, b"xy") for i in range(300)]
    core = Core.of(core_bytes(segments, escaped=True))
    assert len(core.extents) == 300


def test_the_second_exposure_is_read_over_the_first() -> None:
    first = Core.of(core_bytes([(0x1000, 12, b"aaaabbbbcccc"), (0x9000, 4, b"gone")]))
    delta = Core.of(core_bytes([(0x1000, 4, b""), (0x1004, 4, b"BBBB"), (0x1008, 8, b"")]))
    both = Core.over(first, delta)
    assert both.read(0x1000, 12) == b"aaaaBBBBcccc"
    assert not both.holds(0x9000)
    assert not both.holds(0x100C)
    assert first.read(0x1000, 12) == b"aaaabbbbcccc"


def test_a_cut_core_keeps_what_is_left_of_it() -> None:
    whole = core_bytes([(0x1000, 8, b"abcdefgh")], note(1, prstatus(7)))
    core = Core.of(whole[:-4])
    assert core.read(0x1000, 4) == b"abcd"
    assert not core.holds(0x1004)


def test_overlapping_segments_do_not_overlap_when_read() -> None:
    core = Core.of(core_bytes([(0x1000, 8, b"abcdefgh"), (0x1004, 8, b"ijklmnop")]))
    assert core.read(0x1000, 12) == b"abcdefghmnop"


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"#!/bin/sh\n" * 100])
def test_a_file_that_is_no_core_is_said_to_be_none(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "core"
    file.write_bytes(data)
    with pytest.raises(CoreError):
        Core(file)


def exercise(data: bytes) -> None:
    try:
        core = Core.of(data)
    except CoreError:
        return
    for load in core.loads[:50]:
        for address, size in ((load.start, 8), (load.end - 4, 8), (load.start, load.end - load.start)):
            try:
                assert len(core.read(address, size)) == size
            except CoreError:
                continue
        assert core.load_at(load.start) is load
    list(Core.over(core, core).extents)


@given(st.binary(max_size=600))
def test_arbitrary_bytes_never_raise_past_core_error(data: bytes) -> None:
    exercise(b"\x7fELF\x02\x01\x01" + data)
    exercise(
        struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 4, 62, 1, 0, 64, 0, 0, 64, 56, 9, 64, 0, 0) + data
    )


@given(st.data())
def test_a_core_with_damaged_bytes_never_raises_past_core_error(data: st.DataObject) -> None:
    notes = note(1, prstatus(7)) + note(0x46494C45, mapped((0x1000, 0x2000, 0, "/q"))) + note(6, b"\1" * 32)
    whole = bytearray(core_bytes([(0x1000, 64, b"a" * 32), (0x2000, 8, b"b" * 8)], notes, escaped=True))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(6, len(whole) - 8))
        whole[at : at + 8] = data.draw(st.binary(min_size=8, max_size=8))
    exercise(bytes(whole))
