"""Which pages there are is told alike by a kernel that scans and by one whose entries are read one by one."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from autopsy.linux.mappings import PAGE, parse_maps
from autopsy.linux.tasks import pagemap
from autopsy.linux.tasks.pagemap import IN_MEMORY, OWN, SWAPPED_OUT, runs, slices
from autopsy.linux.tasks.present_memory import opened_memory, read_present

KINDS = (IN_MEMORY, SWAPPED_OUT, OWN)
MADV_GUARD_INSTALL = 102


@contextmanager
def own() -> Iterator[int]:
    descriptor = os.open("/proc/self/pagemap", os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def scans() -> bool:
    with own() as descriptor:
        try:
            pagemap._scanned(descriptor, 0, PAGE, KINDS)
        except OSError:
            return False
    return True


def told(descriptor: int, start: int, end: int) -> list[list[tuple[int, int]]]:
    return [list(runs(descriptor, start, end, kind)) for kind in KINDS]


def address_of(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


@pytest.fixture
def arena() -> mmap.mmap:
    memory = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory


def test_a_scan_tells_what_the_entries_tell(arena: mmap.mmap, monkeypatch: pytest.MonkeyPatch) -> None:
    if not scans():
        pytest.skip("this kernel has no PAGEMAP_SCAN")
    for page in (0, 1, 2, 511, 512, 8191, 8192, 16_383):  # the ends of page tables and of slices
        arena[page * PAGE] = 1
    start = address_of(arena)
    ctypes.CDLL(None).madvise(ctypes.c_void_p(start + PAGE), ctypes.c_size_t(PAGE), MADV_GUARD_INSTALL)
    mapped = parse_maps(Path("/proc/self/maps").read_bytes())
    ranges = [(each.start, each.end) for each in mapped if each.inode and each.size < 32 << 20]
    with own() as descriptor:
        scanned = [told(descriptor, *each) for each in (*ranges, (start, start + len(arena)))]
        monkeypatch.setattr(fcntl, "ioctl", refuse)
        read = [told(descriptor, *each) for each in (*ranges, (start, start + len(arena)))]
    assert scanned == read
    assert any(own_pages for _, _, own_pages in scanned)
    assert [((address - start) // PAGE, size // PAGE) for address, size in scanned[-1][0]][-4:] == [
        (511, 2),
        (8191, 1),
        (8192, 1),  # of another slice
        (16_383, 1),
    ]


def refuse(*_: object) -> int:
    raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")


def test_more_runs_than_one_call_tells_are_told_by_the_next(arena: mmap.mmap) -> None:
    for page in range(0, 4096, 2):
        arena[page * PAGE] = 1
    start = address_of(arena)
    with own() as descriptor:
        found = list(runs(descriptor, start, start + len(arena), IN_MEMORY))
    assert found == [(start + page * PAGE, PAGE) for page in range(0, 4096, 2)]


def test_a_kernel_that_knows_no_guard_pages_is_asked_without_them(
    arena: mmap.mmap, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not scans():
        pytest.skip("this kernel has no PAGEMAP_SCAN")
    honest = fcntl.ioctl

    def older(descriptor: int, request: int, argument: bytearray) -> int:
        if pagemap.ARGUMENT.unpack(argument)[11] & 1 << 8:
            raise OSError(errno.EINVAL, "Invalid argument")
        return honest(descriptor, request, argument)

    arena[5 * PAGE] = 1
    start = address_of(arena)
    monkeypatch.setattr(fcntl, "ioctl", older)
    monkeypatch.setattr(os, "pread", refuse)
    with own() as descriptor:
        assert list(runs(descriptor, start, start + len(arena), IN_MEMORY)) == [(start + 5 * PAGE, PAGE)]


def test_no_call_goes_through_more_than_32_mb(arena: mmap.mmap, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    honest = fcntl.ioctl

    def ioctl(descriptor: int, request: int, argument: bytearray) -> int:
        _, _, first, last, *_ = pagemap.ARGUMENT.unpack(argument)
        asked.append(last - first)
        return honest(descriptor, request, argument)

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    start = address_of(arena)
    with own() as descriptor:
        assert len(list(slices(descriptor, start, start + len(arena), *KINDS))) == 2
    assert max(asked) == 32 << 20


@pytest.mark.parametrize("address", [0, 0x7FFF_FFFF_F000, (1 << 64) - PAGE])
def test_where_no_process_has_memory_there_is_nothing_to_be_read(address: int) -> None:
    with opened_memory(os.getpid(), "/proc/self") as process:
        assert read_present(process, address, 8) == b""
        assert read_present(process, address + PAGE - 2, 8) == b""
