"""Guest RAM is known by its shape, and nothing that grows with it is ever read."""

from __future__ import annotations

import ast
import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import autopsy
from autopsy.capture.freeze.choose_pages import address_space
from autopsy.drill.machine import Machine
from autopsy.linux.mappings import PAGE, Mapping, parse_maps
from autopsy.linux.tasks.pagemap import SCAN
from autopsy.target.command_line import options, words
from autopsy.target.guest_ram import BY_SHAPE, BY_SIZE, IN_DOUBT, guest_ram, sizes
from autopsy.target.qemu_processes import tell
from support import lab

MB = 1 << 20
GROWS = {"smaps", "smaps_rollup", "numa_maps"}
BASE = 0x7F0000000000


def laid_out(*pieces: tuple[int, str]) -> tuple[Mapping, ...]:
    """Return anonymous mappings one above the other; a piece without permissions is a hole."""
    found = []
    position = BASE
    for size, permissions in pieces:
        if permissions:
            found.append(Mapping(position, position + size, permissions, 0, "00:00", 0, ""))
        position += size
    return tuple(found)


def reasons(*pieces: tuple[int, str], told: tuple[int, ...] = ()) -> list[str]:
    """Return why each piece is taken for guest RAM, empty where it is not."""
    mappings = laid_out(*pieces)
    ram = guest_ram(mappings, told)
    return [ram.get(each.start, "") for each in mappings]


def test_a_block_that_is_aligned_and_has_a_guard_page_behind_it_is_guest_ram() -> None:
    assert reasons((256 * MB, "rw-p"), (PAGE, "---p"), (4 * MB - PAGE, ""), (PAGE, "rw-p"), (PAGE, "---p")) == [
        *(BY_SHAPE, ""),
        *(BY_SHAPE, ""),
    ]


def test_a_block_without_alignment_or_without_a_guard_page_is_qemus_own() -> None:
    assert reasons((PAGE, ""), (256 * MB, "rw-p"), (PAGE, "---p")) == ["", ""]
    assert reasons((256 * MB, "rw-p"), (PAGE, ""), (PAGE, "---p")) == ["", ""]


def test_an_arena_of_the_c_library_is_no_guest_ram_however_it_is_aligned() -> None:
    assert reasons((132 << 10, "rw-p"), (64 * MB - (132 << 10), "---p")) == ["", ""]
    assert reasons((MB, "rw-p"), (MB, "rw-p"), (62 * MB, "---p")) == ["", "", ""]


def test_ram_right_above_an_arena_is_not_taken_for_a_stack() -> None:
    arena = ((64 * MB - PAGE, "rw-p"), (PAGE, "---p"))
    assert reasons(*arena, (16 * MB, "rw-p"), (PAGE, "---p")) == ["", "", BY_SHAPE, ""]


def test_no_coroutine_s_stack_is_taken_for_guest_ram_wherever_it_lies() -> None:
    """A thousand of them in a row drift over every alignment that there is."""
    pile = ((PAGE, "---p"), (MB, "rw-p")) * 1200
    assert not any(reasons((2 * MB - PAGE, ""), *pile, (PAGE, "---p")))
    assert not any(reasons((2 * MB - PAGE, ""), (PAGE, "---p"), (8 * MB, "rw-p"), (PAGE, "---p")))


def test_a_block_of_the_size_that_was_given_is_guest_ram_in_one_piece_or_in_several() -> None:
    assert reasons((64 * MB, "rw-p"), told=(64 * MB,)) == [BY_SIZE]
    # The kernel was told something of one page of it: it is three mappings since.
    pieces = ((33 * MB, "rw-p"), (PAGE, "rw-p"), (31 * MB - PAGE, "rw-p"))
    assert reasons(*pieces, (PAGE, "---p"), told=(64 * MB,)) == [BY_SIZE, BY_SIZE, BY_SIZE, ""]


def test_where_the_memory_that_was_given_is_not_found_whatever_may_be_it_is_left_out() -> None:
    pieces = ((PAGE, ""), (96 * MB, "rw-p"), (PAGE, ""), (PAGE, "rw-p"), (PAGE, "---p"), (MB, "rw-p"))
    assert reasons(*pieces, told=(128 * MB,)) == [IN_DOUBT, "", "", ""]
    assert not any(reasons(*pieces))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("-m 256", (256 * MB,)),
        ("-m 1.5G,slots=2,maxmem=8G", (1536 * MB,)),
        ("-m size=4194304k,maxmem=8G", (4096 * MB,)),
        ("-m 1 -object memory-backend-ram,id=m,size=64M", (MB, 64 * MB)),
        ('-object {"qom-type":"memory-backend-memfd","id":"m","size":1073741824}', (0, 1024 * MB)),
        ("-object iothread,id=io0 -name m", (0,)),
        ("-m many", (0,)),
        ("-m 1e999G", (0,)),
    ],
)
def test_sizes_are_read_as_qemu_reads_them(line: str, expected: tuple[int, ...]) -> None:
    assert sizes(options(("qemu", *line.split()))) == expected


def kernels_word(pid: int) -> dict[int, str]:
    """Return the private mappings of no file that the kernel itself marks as guest RAM (`dc`: MADV_DONTFORK)."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if head := re.match(r"([0-9a-f]+)-[0-9a-f]+ rw-p \S+ \S+ 0 *$", line):
            found[int(head[1], 16)] = ""
            last = int(head[1], 16)
        elif line.startswith("VmFlags:") and found and found.get(last) == "":
            found[last] = line
    return {start: line for start, line in found.items() if " dc" in line}


DIMMS = (
    *("-m", "192M,slots=2,maxmem=1G", "-device", "VGA,romfile=", "-device", "e1000,romfile=", "-smp", "2"),
    *("-object", "memory-backend-ram,id=more,size=32M", "-device", "pc-dimm,memdev=more,id=d0"),
)


@pytest.mark.live
def test_the_shape_tells_of_every_qemu_what_the_kernel_tells(build: lab.Build) -> None:
    with lab.qemu(build, *DIMMS, boots=True) as vm:
        marked = kernels_word(vm.pid)
        mappings = parse_maps(Path(f"/proc/{vm.pid}/maps").read_bytes())
        assert sum(each.size for each in mappings if each.start in marked) > 224 * MB
        assert set(guest_ram(mappings)) == set(marked)
        told = sizes(options(words(Path(f"/proc/{vm.pid}/cmdline").read_bytes())))
        assert set(guest_ram(mappings, told)) == set(marked)


def constants() -> Iterator[tuple[Path, str]]:
    """Yield every string of the program that could be a path, those inside f-strings too, but no docstring."""
    for path in Path(autopsy.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
                text = node.value if isinstance(node.value, str) else node.value.decode("latin-1")
                if " " not in text:
                    yield path, text


def test_no_file_that_grows_with_guest_ram_is_named_but_where_old_bundles_are_read() -> None:
    named = {
        (path.name, text)
        for path, text in constants()
        if set(text.rstrip("/").split("/")[-1:]) & GROWS or any(f"/{name}" in text for name in GROWS)
    }
    assert named == {("layout.py", "smaps")}
    uses = [
        path.name
        for path in Path(autopsy.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "SMAPS"
    ]
    assert uses == ["files.py"]  # redaction, of a member


@pytest.fixture
def traced(stock: lab.Build, tmp_path: Path) -> Iterator[tuple[Machine, Path]]:
    if subprocess.run(["which", "strace"], capture_output=True, check=False).returncode:
        lab.missing("strace is not here")
    with lab.folder() as folder:
        disk = lab.disk(folder / "disk.raw")
        drive = f"file={disk},format=raw,id=disk0,if=none"
        with lab.qemu(stock, "-drive", drive, "-device", "virtio-blk-pci,drive=disk0", boots=True) as vm:
            yield vm, tmp_path


# strace tells of no PAGEMAP_SCAN what it asks for: whoever calls it writes that down.
TELLING = f"""
import fcntl, os, struct
honest = fcntl.ioctl
def ioctl(descriptor, request, *rest):
    if request == {SCAN}:
        _, _, start, end, *_ = struct.unpack("<12Q", rest[0])
        log = os.open(os.environ["SCANS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(log, b"%d %d\\n" % (start, end))
        os.close(log)
    return honest(descriptor, request, *rest)
fcntl.ioctl = ioctl
from autopsy.__main__ import main
main()
"""


@pytest.mark.live
@pytest.mark.parametrize("command", ["capture", "ps"])
def test_nothing_that_grows_with_guest_ram_is_opened_and_pagemap_is_not_read_over_it(
    command: str, traced: tuple[Machine, Path]
) -> None:
    vm, place = traced
    arguments = ["capture", f"pid:{vm.pid}", "--fast", "--out", str(place)] if command == "capture" else ["ps"]
    log = place / "strace"
    strace = ["strace", "-f", "-qq", "-y", "-o", str(log), "-e", "trace=open,openat,openat2,pread64,preadv,ioctl"]
    program, told = [sys.executable, "-c", TELLING, *arguments], place / "scans"
    environment = {**os.environ, "SCANS": str(told)}
    subprocess.run([*strace, *program], check=True, timeout=170, capture_output=True, env=environment)
    calls = log.read_text(errors="replace")
    opened = {Path(name).name for name in re.findall(r'open(?:at2?)?\(.*?"([^"]*)"', calls)}
    assert "maps" in opened
    assert not opened & GROWS
    ram = [each for each in parse_maps(Path(f"/proc/{vm.pid}/maps").read_bytes()) if each.start in kernels_word(vm.pid)]
    assert ram
    reads = re.findall(r"pread64\(\d+</proc/\d+/pagemap>.*, (\d+), (\d+)\) *=", calls)
    assert all(int(size) <= 64 << 10 for size, _ in reads)
    looks = [(int(offset) // 8 * PAGE, (int(offset) + int(size)) // 8 * PAGE) for size, offset in reads]
    scans = [tuple(map(int, line.split())) for line in told.read_text().splitlines()] if told.exists() else []
    done = re.findall(r"ioctl\(\d+</proc/\d+/pagemap>.*\) *= \d", calls)
    assert len(done) <= len(scans)  # nobody else scans
    assert looks or done
    for first, last in (*looks, *scans):
        assert last - first <= 32 * MB
        if last - first > PAGE:  # one page may be asked for, which holds the index words of a disk's queue
            assert not any(each.start < last and first < each.end for each in ram)


@pytest.mark.live
def test_a_process_tells_the_sizes_of_its_guest_ram_and_where_it_does_not_none_is_taken_for_its_own(
    stock: lab.Build,
) -> None:
    with lab.qemu(stock, *DIMMS) as vm:
        told = tell([vm.pid])[vm.pid]
        assert told.ram_sizes == (192 * MB, 32 * MB)
        mappings, ram = address_space(f"/proc/{vm.pid}", told.ram_sizes)
        assert set(ram) == set(guest_ram(mappings, told.ram_sizes))
        _, doubtful = address_space(f"/proc/{vm.pid}", dataclasses.replace(told, options=None).ram_sizes)
        assert set(doubtful) > set(ram)
