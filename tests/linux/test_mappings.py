from __future__ import annotations

import ctypes
import dataclasses
import mmap
import os
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopsy.capture.freeze import core_writer, memory_copy
from autopsy.capture.freeze.choose_pages import choose
from autopsy.capture.freeze.chunk import Chunk
from autopsy.capture.freeze.core_cap import Wanted
from autopsy.capture.freeze.memory_copy import Snapshot
from autopsy.examine.core.reader import Core
from autopsy.linux.mappings import PAGE, MappedProcess, Mapping, modules, parse_maps
from autopsy.linux.tasks.pagemap import IN_MEMORY, SWAPPED_OUT, runs

MADV_GUARD_INSTALL = 102  # Linux 6.13

PATHS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30).map(
    lambda text: f"/{text.strip()}x"
)
NAMES = st.one_of(st.just(""), st.just("[heap]"), st.just("[anon:glibc: malloc]"), PATHS)


@st.composite
def address_spaces(draw: st.DrawFn) -> tuple[Mapping, ...]:
    found = []
    position = 0x10000
    for _ in range(draw(st.integers(0, 6))):
        start = position + draw(st.integers(0, 3)) * PAGE
        position = start + draw(st.integers(1, 5)) * PAGE
        path = draw(NAMES)
        found.append(
            Mapping(
                start=start,
                end=position,
                permissions="".join(draw(st.sampled_from(pair)) for pair in ("r-", "w-", "x-", "ps")),
                offset=draw(st.integers(0, 9)) * PAGE,
                device="fe:00",
                inode=7 if path.startswith("/") else 0,
                path=path,
            )
        )
    return tuple(found)


def as_maps(mappings: tuple[Mapping, ...]) -> bytes:
    """Write mappings as the kernel does: fs/proc/task_mmu.c, show_map_vma."""
    lines = []
    for each in mappings:
        path = each.path.replace("\n", "\\012")
        head = f"{each.start:x}-{each.end:x} {each.permissions} {each.offset:08x} {each.device} {each.inode} "
        lines.append((head.ljust(73) + path if path else head).encode())
    return b"".join(line + b"\n" for line in lines)


@given(address_spaces())
def test_maps_are_read_as_the_kernel_writes_them(mappings: tuple[Mapping, ...]) -> None:
    assert parse_maps(as_maps(mappings)) == mappings


@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_no_mappings_and_no_error(data: bytes) -> None:
    for each in parse_maps(data):
        assert each.start < each.end


@given(address_spaces(), st.data())
def test_damaged_maps_never_raise_nor_overlap(mappings: tuple[Mapping, ...], data: st.DataObject) -> None:
    whole = bytearray(as_maps(mappings))
    for _ in range(data.draw(st.integers(0, 5))):
        if whole:
            whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    found = parse_maps(bytes(whole))
    assert all(one.end <= two.start for one, two in pairwise(found))


def test_our_own_map_is_read_whole() -> None:
    data = Path("/proc/self/maps").read_bytes()
    found = parse_maps(data)
    assert len(found) == data.count(b"\n")
    assert sum("x" in each.permissions and each.path.startswith("/") for each in modules(found)) >= 2


def mapping(permissions: str = "rw-p", path: str = "", inode: int = 0) -> Mapping:
    return Mapping(PAGE, 2 * PAGE, permissions, 0, "00:00", inode, path)


@pytest.mark.parametrize(
    ("each", "ram", "why"),
    [
        (mapping(), {PAGE: "guest RAM: so it is"}, "guest RAM: so it is"),
        (mapping("rwxp"), {}, "generated code"),
        (mapping("rw-s", path="/memfd:x", inode=3), {}, "shared memory"),
        (mapping(path="/images/ram", inode=6), {}, "a file's data, and the file is no program"),
    ],
)
def test_nothing_is_looked_at_in_what_is_not_qemus_own(each: Mapping, ram: dict[int, str], why: str) -> None:
    choice = choose((each,), ram, -1, -1)  # to read pagemap would fail
    assert choice.wanted == ()
    assert [region.why for region in choice.left_out] == [why]


def test_pagemap_is_read_in_slices_of_at_most_64_kb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slices = []
    honest = os.pread

    def pread(descriptor: int, size: int, offset: int) -> bytes:
        slices.append(size)
        return honest(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", pread)
    file = tmp_path / "pagemap"
    file.write_bytes(struct.pack("<Q", 1 << 63) * 20_000)
    with file.open("rb") as stream:
        assert list(runs(stream.fileno(), 0, 20_000 * PAGE, IN_MEMORY))[-1][0] < 20_000 * PAGE
    assert max(slices) == 64 << 10
    assert sum(slices) == 20_000 * 8


def test_a_file_without_code_is_no_module() -> None:
    code = mapping(permissions="r-xp", path="/usr/lib/x.so", inode=5)
    data = mapping(path="/usr/lib/x.so", inode=5)
    disk = mapping(path="/images/ram", inode=6)
    assert modules((code, data, disk)) == (code, data)


@contextmanager
def own(file: str) -> Iterator[int]:
    descriptor = os.open(f"/proc/self/{file}", os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def address_of(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def pages(start: int, found: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    return [((address - start) // PAGE, size // PAGE) for address, size in found]


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1])


def test_only_touched_pages_are_found_in_a_large_arena() -> None:
    arena = mmap.mmap(-1, 1 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    arena.madvise(mmap.MADV_NOHUGEPAGE)
    start = address_of(arena)
    for page in (0, 1, 2, 70_000, 262_143):
        arena[page * PAGE] = 1
    with own("pagemap") as pagemap:
        found = [
            ((address - start) // PAGE, size // PAGE)
            for address, size in runs(pagemap, start, start + (1 << 30), IN_MEMORY)
        ]
    assert found == [(0, 3), (70_000, 1), (262_143, 1)]


def test_a_copy_leaves_absent_pages_absent() -> None:
    arena = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    arena.madvise(mmap.MADV_NOHUGEPAGE)
    arena[0] = 1
    start = address_of(arena)
    with own("pagemap") as pagemap, own("mem") as memory:
        mappings = parse_maps(Path("/proc/self/maps").read_bytes())
        mine = next(each for each in mappings if each.start <= start < each.end)
        choice = choose((mine,), {}, pagemap, memory)
        before = resident()
        taken = Snapshot(MappedProcess(os.getpid(), memory, -1, "/proc/self"), choice.wanted)
        assert resident() - before < (32 << 20) // PAGE
    assert any(extent.address <= start < extent.end for extent in taken.extents)


def test_beyond_the_cap_the_largest_mapping_is_cut_short_and_the_rest_is_named(tmp_path: Path) -> None:
    entries = [1 << 63] * 16
    entries[9] = 1 << 62
    entries[5] = 0
    file = tmp_path / "pagemap"
    file.write_bytes(struct.pack("<16Q", *entries))
    small = Mapping(PAGE, 4 * PAGE, "rw-p", 0, "00:00", 0, "[heap]")
    large = Mapping(4 * PAGE, 16 * PAGE, "rw-p", 0, "00:00", 0, "")
    with file.open("rb") as stream:
        choice = choose((small, large), {}, stream.fileno(), -1, cap=8 * PAGE)
        nothing = choose((small, large), {}, stream.fileno(), -1, cap=2 * PAGE)
    assert [each.runs for each in choice.wanted] == [
        ((PAGE, 3 * PAGE),),
        ((4 * PAGE, PAGE), (6 * PAGE, 3 * PAGE), (10 * PAGE, PAGE)),
    ]
    assert [(each.start, each.size) for each in choice.beyond_cap] == [(11 * PAGE, 5 * PAGE)]
    assert [each.size for each in nothing.wanted] == [2 * PAGE, 0]
    assert [(each.start, each.size) for each in nothing.beyond_cap] == [(4 * PAGE, 12 * PAGE), (3 * PAGE, PAGE)]


def test_a_page_that_cannot_be_read_splits_the_copy_and_is_not_in_it() -> None:
    arena = mmap.mmap(-1, 8 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    arena.write(b"x" * 8 * PAGE)
    start = address_of(arena)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.madvise(ctypes.c_void_p(start + 3 * PAGE), ctypes.c_size_t(PAGE), MADV_GUARD_INSTALL):
        pytest.skip("this kernel has no guard pages of its own")
    with own("mem") as memory, own("pagemap") as pagemap:
        found = [
            ((address - start) // PAGE, size // PAGE)
            for address, size in runs(pagemap, start, start + 8 * PAGE, IN_MEMORY)
        ]
        taken = Snapshot(
            MappedProcess(os.getpid(), memory, -1, "/proc/self"), [Wanted(mapping(), ((start, 8 * PAGE),))]
        )
        assert not list(runs(pagemap, start, start + 8 * PAGE, SWAPPED_OUT))
    assert (3, 1) not in found
    assert [((each.address - start) // PAGE, each.size // PAGE) for each in taken.extents] == [(0, 3), (4, 4)]


def test_a_page_that_changed_between_the_copies_is_torn_and_stays_as_it_was_first() -> None:
    arena = mmap.mmap(-1, 4 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    arena.write(b"x" * 4 * PAGE)
    start = address_of(arena)
    with own("mem") as memory:
        taken = Snapshot(
            MappedProcess(os.getpid(), memory, -1, "/proc/self"), [Wanted(mapping(), ((start, 4 * PAGE),))]
        )
        arena[PAGE] = arena[3 * PAGE] = 0
        assert taken.torn(frozenset()) == [start + PAGE, start + 3 * PAGE]
        assert taken.torn(frozenset({start + PAGE})) == [start + 3 * PAGE]
    assert taken.chunks()[0].data.tobytes() == b"x" * 4 * PAGE


def test_thousands_of_small_runs_are_copied_by_a_few_calls_and_what_has_gone_costs_itself_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count = 2500
    arena = mmap.mmap(-1, 2 * count * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    arena.write(b"".join(b"%4d" % number * (2 * PAGE // 4) for number in range(count)))
    start = address_of(arena)
    every_other = tuple((start + 2 * number * PAGE, PAGE) for number in range(count))
    calls = []
    honest = memory_copy._read_by_number
    monkeypatch.setattr(memory_copy, "_read_by_number", lambda *given: calls.append(len(given[1])) or honest(*given))
    with own("mem") as memory:
        process = MappedProcess(os.getpid(), memory, -1, "/proc/self")
        taken = Snapshot(process, [Wanted(mapping(), every_other)])
        assert [(each.address, each.size) for each in taken.extents] == list(every_other)
        assert [chunk.data[:4].tobytes() for chunk in taken.chunks()] == [b"%4d" % number for number in range(count)]
        assert len(calls) == 3
        assert max(calls) <= memory_copy.PARTS_AT_ONCE
        arena[2 * 7 * PAGE] = 0
        assert taken.torn(frozenset()) == [start + 2 * 7 * PAGE]
        gone = start + 2 * 1100 * PAGE
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.madvise(ctypes.c_void_p(gone), ctypes.c_size_t(PAGE), MADV_GUARD_INSTALL):
            pytest.skip("this kernel has no guard pages of its own")
        assert taken.torn(frozenset()) == [start + 2 * 7 * PAGE, gone]
        again = Snapshot(process, [Wanted(mapping(), every_other)])
    assert [(each.address, each.size) for each in again.extents] == [run for run in every_other if run[0] != gone]


def test_a_copy_over_a_core_keeps_what_differs_and_knows_the_rest(tmp_path: Path) -> None:
    arena = mmap.mmap(-1, 8 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    arena.write(b"x" * 8 * PAGE)
    start = address_of(arena)
    whole = dataclasses.replace(mapping(), start=start, end=start + 8 * PAGE)
    with own("mem") as memory:
        process = MappedProcess(os.getpid(), memory, -1, "/proc/self")
        wanted = [Wanted(whole, ((start, 8 * PAGE),))]
        first = Snapshot(process, wanted)
        told = core_writer.Notes(1, b"", b"", b"", (core_writer.ThreadRegisters(1, bytes(216)),), ())
        core_writer.write(tmp_path / "core", told, [whole], first.chunks(), fill=True, written=first.release)
        assert first.chunks()[0].data.tobytes() == bytes(8 * PAGE)  # its memory has been given back
        arena[2 * PAGE] = arena[5 * PAGE] = 0
        later = Snapshot(process, wanted, base=Core(tmp_path / "core"))
        assert [(each.address - start) // PAGE for each in later.extents] == [2, 5]
        assert [(each.address - start, each.size) for each in later.present] == [(0, 8 * PAGE)]
        assert later.size == 8 * PAGE
        assert later.torn(frozenset()) == []
        arena[3 * PAGE] = arena[5 * PAGE] = 1
        assert later.torn(frozenset()) == [start + 3 * PAGE, start + 5 * PAGE]


def test_what_was_read_in_the_stop_takes_the_place_of_the_copy() -> None:
    arena = mmap.mmap(-1, 4 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    arena.write(b"x" * 4 * PAGE)
    start = address_of(arena)
    with own("mem") as memory:
        taken = Snapshot(
            MappedProcess(os.getpid(), memory, -1, "/proc/self"),
            [Wanted(mapping(), ((start, PAGE), (start + 2 * PAGE, PAGE)))],
        )
    piece = Chunk(start - PAGE, memoryview(b"y" * 4 * PAGE))
    extra = [((each.address - start) // PAGE, len(each.data) // PAGE) for each in taken.lay_over([piece])]
    assert extra == [(-1, 1), (1, 1)]
    assert all(chunk.data.tobytes() == b"y" * PAGE for chunk in taken.chunks())


def test_what_is_swapped_out_is_told_apart_from_what_is_in_memory(tmp_path: Path) -> None:
    entries = {1: 1 << 63, 2: 1 << 62, 3: 1 << 62, 4: 1 << 63 | 1 << 61, 5: 1 << 62 | 1 << 58}  # the last: a guard
    file = tmp_path / "pagemap"
    file.write_bytes(struct.pack("<8Q", *(entries.get(page, 0) for page in range(8))))
    with file.open("rb") as stream:
        heap = Mapping(PAGE, 8 * PAGE, "rw-p", 0, "00:00", 0, "[heap]")
        (found,) = choose((heap,), {}, stream.fileno(), -1).wanted
    assert found.runs == ((PAGE, PAGE), (4 * PAGE, PAGE))
    assert found.swapped == ((2 * PAGE, 2 * PAGE),)


def arena_of(*letters: bytes) -> tuple[mmap.mmap, int]:
    arena = mmap.mmap(-1, len(letters) * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    arena.write(b"".join(letter * PAGE for letter in letters))
    return arena, address_of(arena)


def test_swapped_pages_take_their_place_among_the_others() -> None:
    arena, start = arena_of(b"a", b"b", b"c")
    with own("mem") as memory:
        wanted = Wanted(mapping(), ((start, PAGE), (start + 2 * PAGE, PAGE)), ((start + PAGE, PAGE),))
        taken = Snapshot(MappedProcess(os.getpid(), memory, -1, "/proc/self"), [wanted])
    assert b"".join(chunk.data[:1].tobytes() for chunk in taken.chunks()) == b"abc"
    assert taken.notes == []
    del arena


def test_a_swap_device_that_hangs_costs_no_more_than_what_lies_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    arena, start = arena_of(b"a", b"b", b"c")
    honest = memory_copy.read_swapped

    def hangs(pid: int, address: int, target: memoryview) -> int:
        if address == start + 2 * PAGE:
            time.sleep(100)
        return honest(pid, address, target)

    monkeypatch.setattr(memory_copy, "read_swapped", hangs)
    with own("mem") as memory:
        wanted = Wanted(mapping(), ((start, PAGE),), ((start + PAGE, PAGE), (start + 2 * PAGE, PAGE)))
        taken = Snapshot(MappedProcess(os.getpid(), memory, -1, "/proc/self"), [wanted], swap_seconds=0.2)
    assert b"".join(chunk.data[:1].tobytes() for chunk in taken.chunks()) == b"ab"
    assert "swapped out" in taken.notes[0]
    del arena
