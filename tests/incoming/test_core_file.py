"""A core is copied without its guest's memory, in one pass, and what is cut off is told."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from autopsy.examine.core.reader import EHDR, PHDR, Core
from autopsy.incoming.material import CoreFound, Material
from autopsy.incoming.reading import read_evidence

STACK, GUEST = 0x7F0000000000, 0x7E0000000000
WORDS = b"what lay on the stack".ljust(4096, b".")


def note(kind: int, body: bytes) -> bytes:
    padded = body + bytes(-len(body) % 4)
    return struct.pack("<III", 5, len(body), kind) + b"CORE\0\0\0\0" + padded


def made(path: Path, guest: int, *, signal: int = 0) -> Path:
    """Make a core with one thread, its stack, and a guest of so many bytes, which is a hole but for its first page."""
    registers = [0] * 27
    registers[19] = STACK + 64
    status = (
        bytes(12)
        + struct.pack("<H", signal)
        + bytes(18)
        + struct.pack("<I", 4242)
        + bytes(76)
        + struct.pack("<27Q", *registers)
        + bytes(8)
    )
    info = (
        bytes(24)
        + struct.pack("<I", 4242)
        + bytes(12)
        + b"qemu-system-x86".ljust(16, b"\0")
        + b"/usr/bin/qemu-system-x86_64 -name web1".ljust(80, b"\0")
    )
    notes = note(1, status) + note(3, info)
    at = 4096
    loads = [(GUEST, guest), (STACK, len(WORDS))]
    headers = PHDR.pack(4, 0, 64 + 3 * 56, 0, 0, len(notes), 0, 4)
    offsets = []
    for address, size in loads:
        offsets.append(at)
        headers += PHDR.pack(1, 6, at, address, 0, size, size, 4096)
        at += size
    head = EHDR.pack(b"\x7fELF\x02\x01\x01" + bytes(9), 4, 62, 1, 0, 64, 0, 0, 64, 56, 3, 0, 0, 0)
    with path.open("wb") as file:
        file.write(head + headers + notes)
        file.seek(offsets[0])
        file.write(b"the guest's".ljust(4096, b"."))
        file.seek(offsets[1])
        file.write(WORDS)
    return path


def taken(path: Path, place: Path) -> Material:
    place.mkdir()
    with path.open("rb") as given, (place / "core").open("w+b") as core:
        return read_evidence([given.fileno()], core.fileno())


def core_of(material: Material) -> CoreFound:
    assert material.core is not None
    return material.core


def test_the_guest_s_memory_is_left_out_and_the_stack_kept(tmp_path: Path) -> None:
    material = taken(made(tmp_path / "core.4242", 1 << 30), tmp_path / "out")
    found = core_of(material)
    assert (found.pid, found.threads, found.truncated) == (4242, 1, False)
    assert found.left_out_bytes == 1 << 30
    core = Core(tmp_path / "out" / "core")
    assert core.read(STACK, len(WORDS)) == WORDS
    assert not core.holds(GUEST)
    assert core.load_at(GUEST) is not None
    assert (tmp_path / "out" / "core").stat().st_size < 1 << 20
    assert [each.name for each in material.machines] == ["web1"]


def test_a_compressed_core_is_streamed(tmp_path: Path) -> None:
    packed = tmp_path / "core.zst"
    with made(tmp_path / "plain", 256 << 20).open("rb") as plain, packed.open("wb") as file:
        zstandard.ZstdCompressor().copy_stream(plain, file)
    material = taken(packed, tmp_path / "out")
    assert Core(tmp_path / "out" / "core").read(STACK, 21) == WORDS[:21]
    assert material.seen[0].what == "a core"


def test_a_truncated_core_is_told_as_truncated(tmp_path: Path) -> None:
    whole = made(tmp_path / "core", 200 << 20)
    os.truncate(whole, 100 << 20)
    material = taken(whole, tmp_path / "out")
    assert core_of(material).truncated
    assert any("truncated" in note for note in material.notes)


def test_a_truncated_stream_is_told_as_truncated(tmp_path: Path) -> None:
    data = made(tmp_path / "core", 64 << 10).read_bytes()[: 32 << 10]
    (tmp_path / "core.zst").write_bytes(zstandard.compress(data))
    assert core_of(taken(tmp_path / "core.zst", tmp_path / "out")).truncated


def test_the_signal_that_ended_it_is_told_first(tmp_path: Path) -> None:
    material = taken(made(tmp_path / "core", 4096, signal=6), tmp_path / "out")
    assert core_of(material).signal == 6
    assert material.crash == "SIGABRT in thread 4242"


@pytest.mark.parametrize("cut", [0, 1, 16, 63, 64, 100, 500, 4000])
def test_a_core_that_ends_anywhere_breaks_nothing(cut: int, tmp_path: Path) -> None:
    data = made(tmp_path / "core", 4096).read_bytes()[:cut]
    (tmp_path / "cut").write_bytes(data)
    taken(tmp_path / "cut", tmp_path / "out")


def test_thirty_gigabytes_with_holes_take_less_than_200_mb(tmp_path: Path) -> None:
    core = made(tmp_path / "core", 30 << 30)
    words = (
        "import os, re, sys; from autopsy.incoming.reading import read_evidence;"
        "found = read_evidence([os.open(sys.argv[1], os.O_RDONLY)], os.open(sys.argv[2], os.O_RDWR | os.O_CREAT));"
        # Of this program alone: what getrusage(2) tells begins with its parent's, which runs many tests.
        "print(found.core.left_out_bytes, re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", words, core, tmp_path / "out"], capture_output=True, text=True, check=True
    )
    left_out, kilobytes = map(int, done.stdout.split())
    assert left_out == 30 << 30
    assert kilobytes < 200_000
