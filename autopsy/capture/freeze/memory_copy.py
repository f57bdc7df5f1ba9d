"""Copies of a process's pages, taken while it runs, in memory that a child of ours shares."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator

from autopsy.capture.freeze.chunk import Chunk
from autopsy.capture.freeze.core_cap import Wanted
from autopsy.capture.freeze.core_delta import alike_in
from autopsy.dataclass import dataclass
from autopsy.examine.core.reader import Core
from autopsy.linux.child import ChildFailed, ChildTimedOut, in_child
from autopsy.linux.mappings import PAGE, MappedProcess
from autopsy.linux.ptrace import Iovec
from autopsy.linux.tasks.pagemap import Run
from autopsy.linux.tasks.priority import Unpreempted

SCRATCH_BYTES = 1 << 20
SWAP_SECONDS = 1.0
STEP_BYTES = 4 << 20  # that are copied, and compared with the core over which they are laid, before the next
POPULATE_WRITE = 23  # linux/mman.h: MADV_POPULATE_WRITE, since 5.14
PARTS_AT_ONCE = 1024  # limits.h: IOV_MAX
BATCH_BYTES = 4 << 20  # what process_vm_readv takes the lock of the memory map for at once, and only to find the pages


_process_vm_readv = ctypes.CDLL(None, use_errno=True).process_vm_readv
_process_vm_readv.restype = ctypes.c_ssize_t


@dataclass(frozen=True, slots=True)
class CopiedExtent:
    """A run of whole pages: `address` in the process, `offset` in our copy."""

    address: int
    size: int
    offset: int

    @property
    def end(self) -> int:
        """Return the address after the last byte."""
        return self.address + self.size


class Snapshot:
    """The first copy of the evidence; with a `base`, as far as it differs from that core.

    The buffer is shared, so that a fork copies neither it nor its page tables. What has gone from it takes no memory,
    and what is as in the base never comes there.
    """

    def __init__(
        self,
        process: MappedProcess,
        wanted: Iterable[Wanted],
        swap_seconds: float = SWAP_SECONDS,
        base: Core | None = None,
    ) -> None:
        known = tuple(wanted)
        warm = [run for extent in known for run in extent.runs]
        cold = [run for extent in known for run in extent.swapped]
        self._buffer = mmap.mmap(-1, max(PAGE, sum(size for _, size in warm + cold)))
        self._view = memoryview(self._buffer)
        self._process = process
        self.notes: list[str] = []
        self._base = base
        self._warm: list[CopiedExtent] = []
        self._same: list[CopiedExtent] = []
        self._passing = memoryview(bytearray(STEP_BYTES if base is not None else 0))
        self.extents: list[CopiedExtent] = []
        places = _one_after_the_other(warm)
        for group in _grouped(places, STEP_BYTES):
            self._copy_group(group)
        offset = sum(size for _, size in warm)
        swapped = self._copy_swapped(process.pid, cold, offset, swap_seconds) if cold else []
        self.extents = sorted((*self.extents, *swapped), key=lambda extent: extent.address)
        self.present = tuple(sorted((*self._warm, *swapped), key=lambda extent: extent.address))
        self._starts = [extent.address for extent in self.extents]

    @property
    def size(self) -> int:
        """Return the bytes that were copied."""
        return sum(extent.size for extent in self.present)

    def _copy_group(self, group: list[CopiedExtent]) -> None:
        """Copy parts of runs, whose places in the buffer follow each other, and keep what the base does not hold so."""
        first, last = group[0].offset, group[-1].offset + group[-1].size
        if self._base is None:
            target = self._view[first:last]
            with contextlib.suppress(OSError):  # on an older kernel each page is made when it is first written
                self._buffer.madvise(POPULATE_WRITE, first, last - first)
        else:
            target = self._passing[: last - first]
        with Unpreempted() as ahead:
            copied = _copied(self._process, group, target, ahead)
        for part, runs in zip(group, copied, strict=True):
            for start, length in runs:
                extent = CopiedExtent(start, length, part.offset + start - part.address)
                self._warm.append(extent)
                if self._base is None:
                    self.extents.append(extent)
                else:
                    at = extent.offset - first
                    self._keep_what_differs(self._base, extent, target[at : at + length])

    def _keep_what_differs(self, base: Core, extent: CopiedExtent, data: memoryview) -> None:
        moved = extent.offset - extent.address
        position = extent.address
        for start, length in (*alike_in(base, extent.address, data), (extent.end, 0)):
            if start > position:
                self._view[moved + position : moved + start] = data[position - extent.address : start - extent.address]
                self.extents.append(CopiedExtent(position, start - position, moved + position))
            if length:
                self._same.append(CopiedExtent(start, length, moved + start))
            position = start + length
        base.gone_through(extent.size)

    def release(self, address: int, size: int) -> None:
        """Give the memory of a part back that is stored elsewhere by now."""
        index = max(0, bisect_right(self._starts, address) - 1)
        while index < len(self.extents) and (extent := self.extents[index]).address < address + size:
            first, last = max(address, extent.address), min(address + size, extent.end)
            if first < last:
                self._buffer.madvise(mmap.MADV_REMOVE, extent.offset + first - extent.address, last - first)
            index += 1

    def _as_copied(self, address: int, size: int, offset: int) -> bytes:
        """Return a part of the copy; what was not kept of it is the base's, and still is."""
        if self._base is None:
            return self._buffer[offset : offset + size]
        parts, position, end = [], address, address + size
        index = max(0, bisect_right(self._same, address, key=lambda extent: extent.address) - 1)
        while position < end:
            same = self._same[index] if index < len(self._same) else None
            if same is not None and same.end <= position:
                index += 1
                continue
            if same is not None and same.address <= position:
                last = min(end, same.end)
                parts.append(self._base.read(position, last - position))
            else:
                last = end if same is None else min(end, same.address)
                parts.append(self._buffer[offset + position - address : offset + last - address])
            position = last
        self._base.gone_through(size)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _copy_swapped(self, pid: int, cold: list[Run], offset: int, seconds: float) -> list[CopiedExtent]:
        """Copy what is swapped out, as far as the swap device answers in time, in a child that may be abandoned."""
        copied = memoryview(mmap.mmap(-1, len(cold) * 8)).cast("Q")
        places = []
        for address, size in cold:
            places.append(CopiedExtent(address, size, offset))
            offset += size

        def work() -> bytes:
            for index, place in enumerate(places):
                copied[index] = read_swapped(pid, place.address, self._view[place.offset : place.offset + place.size])
            return b""

        try:
            in_child(work, seconds)
        except ChildTimedOut as error:
            self.notes.append(f"what is swapped out was not all read in {seconds:g} s")
            if error.left_behind is not None:
                self.notes.append(f"left behind at the swap device: process {error.left_behind.pid}")
        except ChildFailed as error:
            self.notes.append(f"what is swapped out was not all read: {error}")
        return [
            CopiedExtent(place.address, size, place.offset) for place, size in zip(places, copied, strict=True) if size
        ]

    def torn(self, covered: frozenset[int]) -> list[int]:
        """Read everything once more and return the pages that are no longer as they were, without those in `covered`.

        The first copy stands. The second shows the process after our stop, when every sleeping system call was
        interrupted once and taken up again: part of what differs is our own doing. The first lies on the witness's
        side of the stop, where nothing had been touched. A page that differs is told, so that nobody builds on it.
        """
        torn: list[int] = []
        scratch = bytearray(SCRATCH_BYTES)
        view = memoryview(scratch)
        with Unpreempted() as ahead:
            for group in _grouped(self._warm, SCRATCH_BYTES):  # what was swapped out has not been touched for long
                copied = _copied(self._process, group, view, ahead)
                at = 0
                for part, runs in zip(group, copied, strict=True):
                    before = self._as_copied(part.address, part.size, part.offset)
                    now, at = scratch[at : at + part.size], at + part.size  # bytes: to compare views goes byte by byte
                    whole = runs == [(part.address, part.size)]
                    if whole and now == before:
                        continue
                    torn += [
                        address
                        for page in range(0, part.size, PAGE)
                        if (address := part.address + page) not in covered
                        and (
                            now[page : page + PAGE] != before[page : page + PAGE]
                            or not (whole or _within(address, runs))
                        )
                    ]
        return torn

    def lay_over(self, pieces: Iterable[Chunk]) -> Iterator[Chunk]:
        """Put later copies of some pages in the place of ours; yield the parts of which we have no copy."""
        for piece in pieces:
            position = piece.address
            index = max(0, bisect_right(self._starts, position) - 1)
            while position < piece.end:
                if index == len(self.extents) or self.extents[index].address >= piece.end:
                    yield Chunk(position, piece.data[position - piece.address :])
                    break
                extent = self.extents[index]
                if extent.address > position:
                    yield Chunk(position, piece.data[position - piece.address : extent.address - piece.address])
                    position = extent.address
                last = min(piece.end, extent.end)
                if last > position:
                    there = extent.offset + position - extent.address
                    self._view[there : there + last - position] = piece.data[
                        position - piece.address : last - piece.address
                    ]
                    position = last
                index += 1

    def chunks(self) -> list[Chunk]:
        """Return everything that was copied, in order of address."""
        return [
            Chunk(extent.address, self._view[extent.offset : extent.offset + extent.size]) for extent in self.extents
        ]


def _one_after_the_other(runs: Iterable[Run]) -> Iterator[CopiedExtent]:
    offset = 0
    for address, size in runs:
        yield CopiedExtent(address, size, offset)
        offset += size


def _grouped(extents: Iterable[CopiedExtent], most: int) -> Iterator[list[CopiedExtent]]:
    """Yield them in order, cut and put together so that each group is of `most` bytes and PARTS_AT_ONCE at most."""
    group: list[CopiedExtent] = []
    room = most
    for extent in extents:
        done = 0
        while done < extent.size:
            size = min(room, extent.size - done)
            group.append(CopiedExtent(extent.address + done, size, extent.offset + done))
            done += size
            room -= size
            if not room or len(group) == PARTS_AT_ONCE:
                yield group
                group, room = [], most
    if group:
        yield group


def _within(address: int, runs: Iterable[Run]) -> bool:
    return any(start <= address < start + size for start, size in runs)


def _copied(
    process: MappedProcess, group: list[CopiedExtent], target: memoryview, ahead: Unpreempted
) -> list[list[Run]]:
    """Copy parts of the memory one behind the other, at once if all of it is there; return what was, of each.

    A page that has gone meanwhile (or is a guard page) splits its part and is left out.
    """
    copied: list[list[Run]] = []
    at = 0
    while left := group[len(copied) :]:
        count = _read_at_once(process, left, target[at:])
        for part in left:
            if part.size > count:
                copied.append(list(_copied_alone(process, part.address, target[at : at + part.size], ahead)))
                at += part.size
                break
            copied.append([(part.address, part.size)])
            at += part.size
            count -= part.size
        ahead.breathe()
    return copied


def _read_at_once(process: MappedProcess, group: list[CopiedExtent], target: memoryview) -> int:
    """Read parts of a process's memory, as read_in_batches() does for one; return how much was, in whole pages.

    To be asked for each of a thousand small parts by itself takes longer than to copy them.
    """
    size = sum(part.size for part in group)
    if not read_pages(process.memory, group[0].address, target[:PAGE]):
        return 0
    copied = _read_by_number(process.pid, [(part.address, part.size) for part in group], target[:size])
    return copied if os.path.exists(f"{process.path}/stat") else 0


def _copied_alone(process: MappedProcess, address: int, target: memoryview, ahead: Unpreempted) -> Iterator[Run]:
    """Copy one part and yield what was; a page that cannot be read splits it."""
    done = 0
    while done < len(target):
        size = read_in_batches(process, address + done, target[done:], ahead)
        if size:
            yield address + done, size
        done += size + PAGE


def read_pages(memory: int, address: int, target: memoryview) -> int:
    """Read a process's memory until a page cannot be read; return how much was, in whole pages.

    It is for pages that are in memory. /proc/PID/mem waits for the lock of the memory map killably; process_vm_readv
    does not, and a tracer that cannot be killed keeps the VM standing.
    """
    done = 0
    while done < len(target):
        try:
            copied = os.preadv(memory, [target[done:]], address + done)
        except OSError:
            break
        if not copied:
            break
        done += copied
    return done - done % PAGE


def read_in_batches(process: MappedProcess, address: int, target: memoryview, ahead: Unpreempted) -> int:
    """Read memory of a process that runs until a page cannot be read; return how much was, in whole pages.

    /proc/PID/mem takes the lock of the memory map for each page. Where the CPUs are busy, whatever the VM maps or
    unmaps meanwhile finds it taken again and again, and waits for milliseconds. process_vm_readv takes it once for a
    thousand pages. It cannot be killed while it waits, so that the first page of each batch is read by the other way;
    and it knows a process by its number alone, so that we look whether that still means the same.
    """
    done = 0
    while done < len(target):
        first = read_pages(process.memory, address + done, target[done : done + PAGE])
        if not first:
            break
        batch = target[done : done + BATCH_BYTES]
        copied = (
            max(first, _read_by_number(process.pid, [(address + done, len(batch))], batch))
            if len(batch) > PAGE
            else first
        )
        if not os.path.exists(f"{process.path}/stat"):
            break
        done += copied
        ahead.breathe()
    return done


def read_swapped(pid: int, address: int, target: memoryview) -> int:
    """Read a process's memory that is swapped out; return how much was read, in whole pages.

    /proc/PID/mem would wait for the swap device with the lock of the memory map held, and if the device hung, every
    mmap in the VM with it. process_vm_readv drops the lock for such a wait, and can be killed in it.
    """
    return _read_by_number(pid, [(address, len(target))], target)


def _read_by_number(pid: int, runs: list[Run], target: memoryview) -> int:
    local = Iovec(ctypes.addressof(ctypes.c_char.from_buffer(target)), len(target))
    remote = (Iovec * len(runs))(*(Iovec(address, size) for address, size in runs))
    copied = int(_process_vm_readv(pid, ctypes.byref(local), 1, remote, len(runs), 0))
    return max(copied, 0) & -PAGE
