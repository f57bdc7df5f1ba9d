"""A core that would be too large leaves out what matters least, and says so wherever its numbers are used."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from autopsy.bundle import layout
from autopsy.bundle.records import FreezeRecord, LeftOut, Region
from autopsy.capture.freeze import core_cap, core_room, step
from autopsy.capture.freeze.choose_pages import CAP_BYTES
from autopsy.capture.freeze.core_cap import Wanted, Worth, within, worth
from autopsy.examine.core.inputs import Frozen
from autopsy.examine.core.symbols import Symbols
from autopsy.examine.coroutines import find as coroutines
from autopsy.facts.limits import gather_limits
from autopsy.linux.mappings import PAGE, Mapping
from support import lab
from support.freezing import Taken, take

REQUESTS = 300


def wanted(start: int, pages: int) -> Wanted:
    return Wanted(Mapping(start, start + pages * PAGE, "rw-p", 0, "00:00", 0, ""), ((start, pages * PAGE),))


def test_buffers_go_before_the_heap_and_the_heap_before_stacks_however_large_they_are() -> None:
    buffer, heap, stack = wanted(PAGE, 4), wanted(16 * PAGE, 8), wanted(64 * PAGE, 16)
    worths = (Worth.BUFFER, Worth.HEAP, Worth.STACKS_AND_DATA)

    def sizes(cap: int) -> list[int]:
        return [each.size // PAGE for each in within((buffer, heap, stack), worths, cap * PAGE, -1)[0]]

    assert sizes(28) == [4, 8, 16]
    assert sizes(25) == [1, 8, 16]
    assert sizes(20) == [0, 4, 16]
    assert sizes(10) == [0, 0, 10]


def test_what_a_stack_leads_to_stays_in_a_heap_that_is_cut(tmp_path: Path) -> None:
    memory = bytearray(200 * PAGE)
    last = 150 * PAGE
    memory[64 * PAGE : 64 * PAGE + 8] = last.to_bytes(8, "little")
    memory[last + 8 : last + 16] = (140 * PAGE).to_bytes(8, "little")
    file = tmp_path / "memory"
    file.write_bytes(memory)
    with file.open("rb") as stream:
        heap, stack = wanted(100 * PAGE, 60), wanted(64 * PAGE, 1)
        (kept, _), left_out = within((heap, stack), (Worth.HEAP, Worth.STACKS_AND_DATA), 11 * PAGE, stream.fileno())
    assert [(start // PAGE, size // PAGE) for start, size in kept.runs] == [(100, 6), (140, 2), (150, 2)]
    assert [(each.start // PAGE, each.size // PAGE) for each in left_out] == [(106, 54)]


def test_a_large_block_of_no_name_is_a_buffer_and_what_is_named_or_a_stack_is_more() -> None:
    large, small = wanted(0x100000, 512).mapping, wanted(0x100000, 2).mapping
    assert worth(large, frozenset(), frozenset()) is Worth.BUFFER
    assert worth(large, frozenset(), frozenset({large.start})) is Worth.HEAP
    assert worth(large, frozenset({large.start}), frozenset()) is Worth.STACKS_AND_DATA
    assert worth(small, frozenset(), frozenset()) is Worth.HEAP


def symbols_of(taken: Taken, place: Path) -> Symbols:
    frozen = Frozen(core=taken.path, read=lambda _path: b"", write=lambda _file, _data: None, scratch=place)
    return Symbols(taken.core, frozen)


def parked(taken: Taken, place: Path) -> int:
    found = coroutines.find_coroutines(taken.core, symbols_of(taken, place))
    return sum(each.coroutine.state == "parked" for each in found) - 1  # the monitor's own


@pytest.mark.live
def test_every_parked_request_is_in_a_core_that_has_no_room_for_their_data(
    stock: lab.Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lab.folder() as folder:
        limited = f"if=none,id=disk0,format=raw,file={lab.disk(folder / 'd')},throttling.bps-total=1"
        with lab.qemu(stock, "-drive", limited, "-device", "virtio-blk-pci,drive=disk0") as vm:
            for number in range(REQUESTS):
                vm.qemu_io("disk0", f"aio_write {number * 64}k 64k")
            whole = take(vm.pid, tmp_path / "whole")
            heap = sum(each.end - each.start for each in whole.core.extents)
            monkeypatch.setattr(step, "room_for_core", lambda _folder: heap - REQUESTS * (60 << 10))
            cut = take(vm.pid, tmp_path / "cut")
            monkeypatch.setattr(core_cap, "_reached", lambda *_: set[int]())
            blind = take(vm.pid, tmp_path / "blind")
            assert parked(whole, tmp_path) == parked(cut, tmp_path) >= REQUESTS - 1
            assert parked(blind, tmp_path) < REQUESTS - 1  # as it was when the largest mapping was cut by its end
            monkeypatch.setattr(coroutines, "MOST_COROUTINES", 10)
            limits: list[LeftOut] = []
            assert len(coroutines.find_coroutines(whole.core, symbols_of(whole, tmp_path), limits)) == 10
            assert [each.requests for each in limits] == [True]
    assert not whole.record.beyond_cap
    assert "[heap]" in [each.path for each in cut.record.beyond_cap]
    # Counted by their mappings: one that another of the process's touches is one with it.
    assert cut.record.coroutine_stacks >= REQUESTS * 0.9


class Stored:
    """A bundle of two files."""

    manifest = SimpleNamespace(steps=())

    def __init__(self, record: FreezeRecord) -> None:
        self.files = {
            layout.evidence(layout.FREEZE, layout.FREEZE_RECORD): msgspec.json.encode(record),
            layout.evidence(layout.GDB_THREADS, layout.COROUTINES): b"[]",
        }

    def read(self, path: str) -> bytes:
        return self.files.get(path, b"")


def test_a_core_that_lacks_coroutines_says_that_more_requests_may_wait() -> None:
    region = Region(start=1, size=2, path="[heap]", why="2 KiB of what lies from here on")
    record = FreezeRecord(
        architecture="x86_64",
        page_size=PAGE,
        frozen_at_ns=1,
        stops=(),
        threads=(),
        left_out=(),
        copied_bytes=1,
        core_bytes=1,
        beyond_cap=(region,),
        coroutine_stacks=3,
    )
    (told,) = gather_limits(Stored(record))  # type: ignore[arg-type]  # it needs no more of a bundle than this
    assert told.requests
    assert told.why == "of 3 coroutines' stacks 3 are of none that was found; [heap]: 2 KiB of what lies from here on"
    (complete,) = gather_limits(Stored(msgspec.structs.replace(record, coroutine_stacks=0)))  # type: ignore[arg-type]  # likewise
    assert not complete.requests
    assert gather_limits(Stored(msgspec.structs.replace(record, beyond_cap=()))) == ()  # type: ignore[arg-type]  # likewise


def test_a_core_is_no_larger_than_its_place_or_the_host_has_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core_room, "lies_in_memory", lambda _folder: True)
    monkeypatch.setattr(core_room, "spare_memory", lambda: 100 << 20)
    assert core_room.room_for_core(tmp_path) <= (100 << 20) - core_room.REST
    monkeypatch.setattr(core_room, "spare_memory", lambda: 1 << 20)
    assert core_room.room_for_core(tmp_path) == core_room.LEAST
    monkeypatch.setattr(core_room, "spare_memory", lambda: 1 << 50)
    assert core_room.room_for_core(tmp_path) <= CAP_BYTES
