from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopsy.bundle import layout
from autopsy.bundle.records import Coroutine, Frame
from autopsy.drill.machine import Machine
from autopsy.errors import ExaminationFailed
from autopsy.examine import run
from autopsy.examine.core.elf import Elf
from autopsy.examine.core.inputs import Frozen
from autopsy.examine.core.reader import MACHINE_X86_64, PAGE, Core
from autopsy.examine.core.symbols import Symbols
from autopsy.examine.coroutines import compare, listing
from autopsy.examine.coroutines.find import STACK_SIZE, Saved, demangle, find_coroutines, mangle, switches_by_signal
from autopsy.examine.second_exposure import examine_again
from support import lab, snapshot
from support.copies import copied

REQUESTS = 12
INTERCEPT = "throttle_group_co_io_limits_intercept"
GUARD = 0x1234_5678_9ABC_DEF0
CODE = 0x40_0000
HEAP = 0x60_0000
STACK = 0x7000_0000
RANDOM = 0x7FFF_0000


@contextmanager
def throttled(which: lab.Build | str, folder: Path, requests: int = REQUESTS) -> Iterator[Machine]:
    """Run a QEMU in which each request waits for an hour behind a limit that is set on the disk itself."""
    disk = lab.disk(folder / "disk.raw")
    drive = ("-drive", f"file={disk},format=raw,if=none,id=d0,throttling.bps-total=1")
    with lab.qemu(which, *drive, "-device", "virtio-blk-pci,drive=d0") as machine:
        for number in range(requests):
            machine.qemu_io("d0", f"aio_write {number * 4}k 4k")
        yield machine


def parked(found: snapshot.Exposed) -> list[Coroutine]:
    """Return the parked coroutines that are requests: not the monitor's own."""
    everyone = found.record(layout.COROUTINES, list[Coroutine])
    return [each for each in everyone if each.state == "parked" and "monitor_qmp_dispatcher_co" not in functions(each)]


def functions(coroutine: Coroutine) -> list[str]:
    return [frame.function for frame in coroutine.frames]


def test_requests_behind_a_throttle_are_exactly_the_parked_coroutines(build: lab.Build, short: Path) -> None:
    with throttled(build, short) as machine, snapshot.exposed(machine) as found:
        run.examine_core(found.frozen)
        requests = parked(found)
        assert len(requests) == REQUESTS
        for each in requests:
            assert INTERCEPT in functions(each)
            assert each.frames[0].function == "qemu_coroutine_switch"
            assert each.stack <= each.sp < each.stack + each.stack_size == each.stack + STACK_SIZE
            assert not each.caller
        outermost = requests[0].frames[-1]
        if build.label == "10.0.2-debug":
            throttle = next(frame for frame in requests[0].frames if frame.function == INTERCEPT)
            assert throttle.file.endswith("block/throttle-groups.c")
            assert throttle.line > 0
            assert outermost.function == "coroutine_trampoline"
        else:
            # A static function of a stripped binary is told by its place, and never bears its neighbour's name.
            assert outermost.function == ""
            assert outermost.unwind_start < outermost.offset
            assert outermost.module.endswith("qemu-system-x86_64")
        text = (found.place / "evidence" / layout.GDB_THREADS / layout.COROUTINES_TEXT).read_text().splitlines()
        assert text[requests[0].line - 1] == f"{REQUESTS} coroutines parked alike:"


def test_requests_behind_a_throttle_filter_are_parked_coroutines(stock: lab.Build, short: Path) -> None:
    disk = lab.disk(short / "disk.raw")
    arguments = (
        *("-object", "throttle-group,id=g0,x-bps-total=1"),
        *("-blockdev", f"driver=file,filename={disk},node-name=f0"),
        *("-blockdev", "driver=throttle,file=f0,throttle-group=g0,node-name=t0"),
        *("-device", "virtio-blk-pci,drive=t0,id=vd0"),
    )
    with lab.qemu(stock, *arguments) as machine:
        for number in range(REQUESTS):
            machine.qemu_io(lab.of_device("vd0"), f"aio_write {number * 4}k 4k")
        with snapshot.exposed(machine) as found:
            run.examine_core(found.frozen)
            assert [INTERCEPT in functions(each) for each in parked(found)] == [True] * REQUESTS


@contextmanager
def at_a_silent_server(build: lab.Build, folder: Path, requests: int) -> Iterator[Machine]:
    """Run a QEMU whose requests were sent to an NBD server that is stopped."""
    with lab.nbd(lab.disk(folder / "disk.raw")) as server:
        node = ("-blockdev", f"driver=nbd,{server.server},node-name=n0")
        with (
            lab.qemu(build, *node, "-device", "virtio-blk-pci,drive=n0,id=vd0") as machine,
            lab.stopped(server.process),
        ):
            for number in range(requests):
                machine.qemu_io(lab.of_device("vd0"), f"aio_write {number * 4}k 4k")
            yield machine


def test_a_silent_nbd_server_keeps_a_coroutine_in_its_channel(build: lab.Build, short: Path) -> None:
    with at_a_silent_server(build, short, 4) as machine, snapshot.exposed(machine) as found:
        run.examine_core(found.frozen)
        waiting = parked(found)
        assert len(waiting) == 4
        # One reads the reply's header for everyone; the others wait for it or for their turn.
        readers = [each for each in waiting if "qio_channel_yield" in functions(each)]
        assert len(readers) == 1
        assert "nbd_receive_reply" in functions(readers[0])


def test_what_has_not_moved_between_two_exposures_is_stuck(stock: lab.Build, short: Path) -> None:
    with throttled(stock, short) as machine, snapshot.exposed(machine, again=True) as found:
        run.examine_core(found.frozen)
        assert [each.since_first for each in parked(found)] == ["stuck"] * REQUESTS
        examine_again(found.frozen)
        assert [each.since_first for each in parked(found)] == ["stuck"] * REQUESTS


def test_a_second_exposure_that_was_not_taken_leaves_no_walk_behind(build: lab.Build, short: Path) -> None:
    with throttled(build, short) as machine, snapshot.exposed(machine) as found:
        before = {child.pid for child in psutil.Process().children()}
        without = replace(found.frozen, second_core=found.frozen.core, second_is_there=lambda: False)
        with pytest.raises(ExaminationFailed, match="there is no second core"):
            examine_again(without)
        assert {child.pid for child in psutil.Process().children()} == before


def test_a_request_that_came_between_two_exposures_is_new_and_unwound(stock: lab.Build, short: Path) -> None:
    with throttled(stock, short, requests=0) as machine, snapshot.exposed(machine) as before:
        run.examine_core(before.frozen)
        machine.qemu_io("d0", "aio_write 0 4k")
        with snapshot.exposed(machine) as after:
            examine_again(replace(before.frozen, second_core=after.frozen.core))
            (request,) = parked(before)
            assert request.since_first == "new"
            assert INTERCEPT in functions(request)
            assert list(before.frozen.scratch.glob("tmp*")) == []


def test_a_request_whose_coroutine_was_awake_at_the_first_exposure_is_the_same_at_the_second(
    build: lab.Build, short: Path
) -> None:
    with at_a_silent_server(build, short, 1) as machine, snapshot.exposed(machine) as before:
        core = Core(before.frozen.core)
        symbols = Symbols(core, before.frozen)
        tracking = compare.track_requests(symbols)
        (saved,) = (each for each in find_coroutines(core, symbols) if is_request(core, each, tracking))
        overwrite(before.frozen.core, core, saved.coroutine.sp, bytes(0x40))  # by what else it called meanwhile
        run.examine_core(before.frozen)
        (awake,) = parked(before)
        assert "qio_channel_yield" not in functions(awake)
        with snapshot.exposed(machine) as after:
            examine_again(replace(before.frozen, second_core=after.frozen.core))
            (again,) = parked(before)
            assert again.since_first == "moved"
            assert again.same_request
            assert "qio_channel_yield" in functions(again)


def is_request(core: Core, saved: Saved, tracking: Sequence[range]) -> bool:
    words = struct.iter_unpack("<Q", core.read(saved.coroutine.sp, saved.top - saved.coroutine.sp))
    return any(word in function for (word,) in words for function in tracking)


def overwrite(path: Path, core: Core, address: int, data: bytes) -> None:
    (extent,) = (each for each in core.extents if each.start <= address < each.end)
    with path.open("r+b") as stream:
        stream.seek(extent.offset + address - extent.start)
        stream.write(data)


def test_requests_that_ended_between_two_exposures_are_gone(stock: lab.Build, short: Path) -> None:
    unlimited = dict.fromkeys(("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)
    with throttled(stock, short) as machine, snapshot.exposed(machine) as before:
        machine.qmp("block_set_io_throttle", device="d0", **unlimited)
        with snapshot.exposed(machine) as after:
            first, second = Core(before.frozen.core), Core(after.frozen.core)
            symbols = Symbols(first, before.frozen)
            told = compare.compare(first, find_coroutines(first, symbols), second, find_coroutines(second, symbols))
            fates = [each.coroutine.since_first for each in told.first if each.coroutine.state == "parked"]
            assert fates.count("gone") == REQUESTS


def test_another_machine_without_the_binary_finds_the_coroutines_and_with_it_their_stacks(
    stock: lab.Build, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = copied(stock, short, monkeypatch)
    copy = ours.binary
    with throttled(ours, short) as machine, snapshot.exposed(machine, alive=False) as found:
        away = copy.rename(short / "elsewhere")
        run.examine_core(found.frozen)
        bare = [each for each in found.record(layout.COROUTINES, list[Coroutine]) if each.state == "parked"]
        assert len(bare) == REQUESTS + 1
        assert {len(each.frames) for each in bare} == {1}
        assert bare[0].frames[0].module == str(copy)
        given = replace(found.frozen, debug_files=(away,))
        run.examine_core(given)
        assert [INTERCEPT in functions(each) for each in parked(found)] == [True] * REQUESTS


def elf_page() -> bytes:
    """Return the first page of a position-dependent program whose code is the page behind it."""
    start = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, MACHINE_X86_64, 1, CODE, 64, 0, 0, 64, 56, 2, 64, 0, 0
    )
    loads = struct.pack("<IIQQQQQQ", 1, 4, 0, CODE, 0, PAGE, PAGE, PAGE)
    loads += struct.pack("<IIQQQQQQ", 1, 5, PAGE, CODE + PAGE, 0, PAGE, PAGE, PAGE)
    return (start + loads).ljust(PAGE, b"\0")


def process(coroutine: bytes, *, stack: bytes = b"") -> Core:
    """Return a core made by hand: a program, a heap that holds `coroutine`, one guarded stack with `stack` on top."""
    body = struct.pack("<QQ", 1, PAGE) + struct.pack("<QQQ", CODE, CODE + PAGE, 0) + b"/q\0"
    notes = snapshot.thread_note(1)
    for kind, data in ((0x46494C45, body), (6, struct.pack("<QQQQ", 25, RANDOM, 9, CODE))):
        notes += struct.pack("<III", 5, len(data), kind) + b"CORE\0\0\0\0" + data + b"\0" * (-len(data) % 4)
    top = STACK + STACK_SIZE
    return Core.of(
        snapshot.core_of(
            notes,
            (CODE, elf_page()),
            (HEAP, coroutine),
            (top - PAGE, stack.rjust(PAGE, b"\0")),
            (RANDOM, struct.pack("<QQ", 0, GUARD)),
        )
    )


def found_in(core: Core, place: Path) -> list[Coroutine]:
    return [saved.coroutine for saved in find_coroutines(core, Symbols(core, frozen_at(place)))]


def context(*, sp: int, pc: int = CODE + PAGE + 8, caller: int = 0, between: bytes = b"", scheduled: int = 0) -> bytes:
    """Return a CoroutineUContext."""
    header = struct.pack("<11Q", CODE + PAGE, 0, caller, 0, 0, 0, scheduled, 0, 0, 0, 0)
    saved = struct.pack("<8Q", 0, mangle(0, GUARD), 0, 0, 0, 0, mangle(sp, GUARD), mangle(pc, GUARD))
    return header + struct.pack("<QQ", STACK, STACK_SIZE) + between + saved + bytes(64)


DEEP = STACK + STACK_SIZE - 0x400
OFFSET, LINK = 0x1234, HEAP + 8  # what a request is about, and a pointer to a neighbour in a list
UNMAPPED = 0x7F00_0000_0000  # where a neighbour's stack may have been mapped while a snapshot was taken


@pytest.mark.parametrize(
    ("then", "now", "fate"),
    [
        (context(sp=DEEP), context(sp=DEEP), "stuck"),
        (context(sp=DEEP), context(sp=DEEP - 16), "moved"),
        (context(sp=DEEP), context(sp=DEEP, pc=CODE + PAGE + 99), "moved"),
        (context(sp=DEEP), context(sp=STACK + STACK_SIZE - 0x50), "gone"),
        (context(sp=DEEP), bytes(200), "gone"),
    ],
    ids=["the same", "deeper", "elsewhere", "ended", "no coroutine any more"],
)
def test_what_became_of_a_coroutine_is_told_by_where_it_stands(
    tmp_path: Path, then: bytes, now: bytes, fate: str
) -> None:
    assert fate_of(tmp_path, process(then), process(now)) == fate


@pytest.mark.parametrize(
    ("was", "became", "fate"),
    [
        (OFFSET, OFFSET + 4096, "moved"),
        (LINK, LINK + 64, "stuck"),
        (0, LINK, "stuck"),
        (LINK, UNMAPPED, "stuck"),
        (OFFSET, UNMAPPED, "moved"),
        (LINK, UNMAPPED + 1, "moved"),
        (LINK, 1 << 45, "moved"),
    ],
    ids=["offset", "link", "first", "to a new stack", "not from it", "not aligned", "an offset of 32 TiB"],
)
def test_another_request_on_the_same_stack_has_moved_and_another_neighbour_has_not(
    tmp_path: Path, was: int, became: int, fate: str
) -> None:
    then, now = (process(context(sp=DEEP), stack=struct.pack("<Q", word).ljust(64, b"\0")) for word in (was, became))
    assert fate_of(tmp_path, then, now) == fate


TRACKING = range(CODE + PAGE + 64, CODE + PAGE + 96)  # the function that puts a tracked request on the stack
ENTRY = TRACKING[13]  # where the outermost request of the block layer goes on


@pytest.mark.parametrize(
    ("inner", "entry", "outer", "same"),
    [
        ((1, 2), (ENTRY, ENTRY), (OFFSET, OFFSET), True),
        ((1, 2), (ENTRY, ENTRY), (OFFSET, OFFSET + 4096), False),
        ((1, 2), (ENTRY, ENTRY), (LINK, LINK + 64), True),
        ((1, 2), (ENTRY, ENTRY + 1), (OFFSET, OFFSET), False),
        ((1, 1), (OFFSET, OFFSET), (OFFSET, OFFSET), False),
    ],
    ids=["the same", "another offset", "another neighbour", "another call", "no request at all"],
)
def test_a_request_is_the_same_by_what_lies_outside_of_its_entry(
    tmp_path: Path, inner: tuple[int, int], entry: tuple[int, int], outer: tuple[int, int], *, same: bool
) -> None:
    """No frame is needed: a coroutine that was awake at one look has none that lead there."""
    then, now = (
        process(context(sp=DEEP), stack=struct.pack("<QQQ", *words).ljust(64, b"\0"))
        for words in zip(inner, entry, outer, strict=True)
    )
    (saved,) = find_coroutines(then, Symbols(then, frozen_at(tmp_path)))
    assert compare.is_same_request(then, now, saved, (range(0), TRACKING)) is same
    assert not compare.is_same_request(then, now, saved, ())


def frozen_at(place: Path) -> Frozen:
    return Frozen(core=place, read=lambda _path: b"", write=lambda _file, _data: None, scratch=place)


def fate_of(place: Path, then: Core, now: Core) -> str:
    symbols = Symbols(then, frozen_at(place))
    (told,) = compare.compare(then, find_coroutines(then, symbols), now, find_coroutines(now, symbols)).first
    return told.coroutine.since_first


@pytest.mark.parametrize(
    ("bytes_there", "state", "backend"),
    [
        (context(sp=DEEP), "parked", "ucontext"),
        (context(sp=DEEP, between=struct.pack("<QQ", 0x7100_0000, 1 << 20)), "parked", "ucontext-safestack"),
        (context(sp=DEEP, caller=HEAP), "running", "ucontext"),
        (context(sp=STACK + STACK_SIZE - 0x50), "pooled", "ucontext"),
        (context(sp=STACK + STACK_SIZE - 0x50, scheduled=CODE), "parked", "ucontext"),
        (context(sp=0x1000), "unclear", "ucontext"),
    ],
    ids=["parked", "safestack", "entered", "ended", "scheduled before it began", "a jmpbuf that leads elsewhere"],
)
def test_a_coroutine_is_told_from_memory_alone(tmp_path: Path, bytes_there: bytes, state: str, backend: str) -> None:
    (coroutine,) = found_in(process(bytes_there), tmp_path)
    assert (coroutine.address, coroutine.state, coroutine.backend) == (HEAP, state, backend)


def test_the_back_end_is_told_by_what_the_binary_imports(build: lab.Build) -> None:
    assert not switches_by_signal(Elf(build.binary).imports)
    assert switches_by_signal(b"\0sigaltstack\0sigaction\0")
    assert not switches_by_signal(b"\0sigaltstack\0makecontext\0")


def test_two_words_that_only_look_like_a_stack_are_no_coroutine(tmp_path: Path) -> None:
    words = struct.pack("<QQ", STACK, STACK_SIZE)
    assert found_in(process(bytes(88) + words + bytes(64)), tmp_path) == []
    assert found_in(process(struct.pack("<QQ", HEAP, STACK_SIZE).rjust(256, b"\0")), tmp_path) == []


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_demangling_undoes_mangling(value: int, guard: int) -> None:
    assert demangle(mangle(value, guard), guard) == value


@given(
    st.lists(
        st.one_of(st.just(STACK_SIZE), st.just(STACK), st.just(CODE + PAGE), st.integers(0, 2**64 - 1)), max_size=60
    )
)
def test_arbitrary_heap_never_raises(words: list[int]) -> None:
    core = process(struct.pack(f"<{len(words)}Q", *words))
    assert len(found_in(core, Path(os.devnull))) <= 1


def test_the_listing_counts_identical_stacks_once() -> None:
    frames = (Frame(pc=1, function="a"), Frame(pc=2, module="/usr/bin/q", offset=2, near="b", unwind_start=1))
    coroutine = Coroutine(
        address=1,
        stack=0,
        stack_size=0,
        state="parked",
        pc=1,
        sp=0,
        entry=0,
        entry_argument=0,
        caller=0,
        context=0,
        locks_held=2,
        frames=frames,
    )
    text, placed = listing.render([coroutine, coroutine])
    assert "2 coroutines parked alike:" in text
    assert "0x1 holds 2 CoMutexes" in text
    assert "in ?? (static near b, begins at q+0x1)" in text
    assert text.splitlines()[placed[0].line - 1].startswith("2 coroutines")
