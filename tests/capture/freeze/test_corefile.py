from __future__ import annotations

import resource
import shutil
import signal
import stat
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopsy.capture.freeze import core_delta, core_writer
from autopsy.capture.freeze.chunk import Chunk
from autopsy.examine.core import reader
from autopsy.examine.core.extent import CoreExtent
from autopsy.examine.core.reader import Core, NotInCore
from autopsy.linux.mappings import PAGE, Mapping

BASE = 0x7F0000000000
PAGES = 24


def mapping(first: int, last: int, path: str = "", permissions: str = "rw-p", offset: int = 0) -> Mapping:
    return Mapping(
        start=BASE + first * PAGE,
        end=BASE + last * PAGE,
        permissions=permissions,
        offset=offset,
        device="00:00",
        inode=9 if path.startswith("/") else 0,
        path=path,
    )


def chunk(page: int, text: bytes, count: int = 1) -> Chunk:
    return Chunk(BASE + page * PAGE, memoryview(text.ljust(PAGE, b".") * count))


def notes(*tids: int, files: tuple[Mapping, ...] = ()) -> core_writer.Notes:
    threads = tuple(core_writer.ThreadRegisters(tid, struct.pack("<27Q", *range(tid, tid + 27))) for tid in tids)
    return core_writer.Notes(
        tids[0], b"qemu-system-x86", b"qemu -m 1", struct.pack("<4Q", 6, PAGE, 0, 0), threads, files
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "core"


def test_threads_files_and_memory_come_back(place: Path) -> None:
    library = mapping(4, 6, "/usr/lib/x.so (deleted)", "r-xp", offset=3 * PAGE)
    size = core_writer.write(
        place,
        notes(11, 12, files=(library,)),
        [mapping(0, 4), library],
        [chunk(1, b"one"), chunk(4, b"code")],
        fill=True,
    )
    assert place.stat().st_size == size
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    core = Core(place)
    assert [thread.tid for thread in core.threads] == [11, 12]
    assert core.threads[1].registers.rip == 12 + 16
    assert [(each.path, each.offset, each.start) for each in core.files] == [("/usr/lib/x.so", 3 * PAGE, library.start)]
    assert core.read(BASE + PAGE, 3) == b"one"
    assert core.read(BASE + 4 * PAGE, 4) == b"code"
    assert core.auxv[6] == PAGE
    with pytest.raises(NotInCore):
        core.read(BASE, 1)
    load = core.load_at(BASE + 5 * PAGE)
    assert load is not None
    assert load.executable


def test_small_gaps_of_anonymous_memory_are_zeros_and_those_of_files_are_absent(place: Path) -> None:
    core_writer.write(
        place,
        notes(1),
        [mapping(0, 4), mapping(8, 12, "/x.so")],
        [chunk(0, b"a"), chunk(2, b"b"), chunk(8, b"c"), chunk(10, b"d")],
        fill=True,
    )
    core = Core(place)
    assert core.read(BASE + PAGE, PAGE) == bytes(PAGE)
    assert not core.holds(BASE + 9 * PAGE)


def test_a_core_that_is_read_over_another_fills_no_gap(place: Path) -> None:
    core_writer.write(place, notes(1), [mapping(0, 4)], [chunk(0, b"a"), chunk(2, b"b")], fill=False)
    assert not Core(place).holds(BASE + PAGE)


def test_pages_of_zeros_take_no_room(place: Path) -> None:
    zeros = Chunk(BASE, memoryview(bytes(1024 * PAGE)))
    size = core_writer.write(place, notes(1), [mapping(0, 2048)], [zeros, chunk(1024, b"end")], fill=True)
    assert size > 1024 * PAGE
    assert place.stat().st_blocks * 512 < 64 * PAGE
    assert Core(place).read(BASE + 5 * PAGE, PAGE) == bytes(PAGE)


def test_a_core_that_ends_in_zeros_has_its_full_length(place: Path) -> None:
    core_writer.write(place, notes(1), [mapping(0, 2)], [Chunk(BASE, memoryview(bytes(2 * PAGE)))], fill=True)
    assert Core(place).read(BASE + PAGE, PAGE) == bytes(PAGE)


def test_the_stack_of_a_thread_that_is_younger_than_the_maps_is_kept(place: Path) -> None:
    core_writer.write(
        place, notes(1), [mapping(4, 6)], [chunk(0, b"new"), chunk(4, b"x"), chunk(9, b"newer")], fill=True
    )
    core = Core(place)
    assert core.read(BASE, 3) == b"new"
    assert core.read(BASE + 9 * PAGE, 5) == b"newer"


def test_more_segments_than_e_phnum_can_count(place: Path) -> None:
    count = 66_000
    mappings = [mapping(2 * page, 2 * page + 1, permissions="---p") for page in range(count)]
    last = BASE + 2 * (count - 1) * PAGE
    core_writer.write(place, notes(1), mappings, [Chunk(last, memoryview(b"z" * PAGE))], fill=True)
    core = Core(place)
    assert len(core.loads) == count
    assert core.read(last, 1) == b"z"
    if shutil.which("readelf") is not None:
        header = subprocess.run(["readelf", "-h", place], capture_output=True, check=True).stdout.decode()
        assert f"65535 ({count + 1})" in header


def test_a_file_or_link_that_is_already_there_is_not_written_through(place: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    place.symlink_to(other)
    with pytest.raises(FileExistsError):
        core_writer.write(place, notes(1), [], [], fill=True)
    assert not other.exists()


def test_a_core_that_cannot_be_written_whole_is_removed(place: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 * PAGE, limits[1]))
        with pytest.raises(OSError, match="File too large"):
            core_writer.write(place, notes(1), [mapping(0, 9)], [chunk(0, b"x", 9)], fill=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not place.exists()


def memories() -> st.SearchStrategy[dict[int, bytes]]:
    return st.dictionaries(st.integers(0, PAGES - 1), st.sampled_from([b"", b"one", b"two"]), max_size=PAGES)


def chunks(memory: dict[int, bytes]) -> Iterator[Chunk]:
    """Yield the pages, with zeros for the empty ones, in runs as they lie side by side."""
    run: list[int] = []
    for page in [*sorted(memory), PAGES + 9]:
        if run and page != run[-1] + 1:
            data = b"".join(memory[each].ljust(PAGE, b"\0") for each in run)
            yield Chunk(BASE + run[0] * PAGE, memoryview(data))
            run = []
        run.append(page)


@given(memories(), memories())
def test_the_second_core_over_the_first_is_the_second_memory(first: dict[int, bytes], second: dict[int, bytes]) -> None:
    heap = mapping(0, PAGES)
    with tempfile.TemporaryDirectory() as folder:
        one, two = Path(folder, "one"), Path(folder, "two")
        core_writer.write(one, notes(1), [heap], chunks(first), fill=True)
        later = list(chunks(second))
        earlier = Core(one)
        delta = [*core_delta.changed(later, earlier), *core_delta.vanished([heap], later, earlier)]
        core_writer.write(two, notes(1), [heap], delta, fill=False)
        both = Core.over(earlier, Core(two))
        for page in range(PAGES):
            address = BASE + page * PAGE
            if page in second:
                assert both.read(address, PAGE) == second[page].ljust(PAGE, b"\0")
            elif both.holds(address):
                assert both.read(address, PAGE) == bytes(PAGE)


@given(memories(), memories())
def test_pages_that_a_core_holds_just_so_are_found_and_no_others(
    first: dict[int, bytes], second: dict[int, bytes]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        one = Path(folder, "one")
        core_writer.write(one, notes(1), [mapping(0, PAGES)], chunks(first), fill=False)
        earlier = Core(one)
        for each in chunks(second):
            alike = [
                address
                for start, size in core_delta.alike_in(earlier, each.address, each.data)
                for address in range(start, start + size, PAGE)
            ]
            pages = range(each.address, each.end, PAGE)
            assert alike == [page for page in pages if first.get(number := (page - BASE) // PAGE) == second[number]]


def test_what_is_in_the_file_is_told_part_by_part(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_writer, "STEP_BYTES", 2 * PAGE)
    told: list[tuple[int, int]] = []
    pieces = [chunk(0, b"a", 3), chunk(6, b"b")]
    core_writer.write(place, notes(1), [mapping(0, 9)], pieces, fill=True, written=lambda *part: told.append(part))
    assert told == [(BASE, 2 * PAGE), (BASE + 2 * PAGE, PAGE), (BASE + 6 * PAGE, PAGE)]
    assert Core(place).read(BASE, 3 * PAGE) == b"a".ljust(PAGE, b".") * 3


def test_bytes_are_found_once_wherever_a_window_ends(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "WINDOW", PAGE)
    data = bytearray(b"." * 4 * PAGE)
    for at in (0, PAGE - 3, 2 * PAGE, 4 * PAGE - 6):
        data[at : at + 6] = b"needle"
    core_writer.write(place, notes(1), [mapping(0, 4)], [Chunk(BASE, memoryview(data))], fill=True)
    (extent,) = Core(place).extents
    assert [each - BASE for each in extent.find(b"needle")] == [0, PAGE - 3, 2 * PAGE, 4 * PAGE - 6]


@given(
    st.lists(st.sampled_from(range(3)), min_size=1, max_size=60),
    st.lists(st.sampled_from(range(3)), min_size=1, max_size=5),
)
def test_bytes_among_zeros_are_found_as_going_through_them_finds_them(data: list[int], wanted: list[int]) -> None:
    memory, needle = bytes(data), bytes(wanted)
    found = list(CoreExtent(BASE, BASE + len(memory) - 1, 1, b"\1" + memory[:-1]).find(needle))
    assert found == [
        BASE + at for at in range(len(memory)) if memory[:-1].startswith(needle, at) and at + len(needle) < len(memory)
    ]


def test_what_did_not_change_is_not_written_again(place: Path) -> None:
    core_writer.write(place, notes(1), [mapping(0, 9)], [chunk(0, b"same", 9)], fill=True)
    assert list(core_delta.changed([chunk(0, b"same", 9)], Core(place))) == []
