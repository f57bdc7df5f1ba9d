"""What is compressed or archived is read within bounds, and what is damaged in it costs the rest nothing."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import struct
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as some

from autopsy.examine.core.reader import Core
from autopsy.incoming import zip_archive
from autopsy.incoming.lz4_frames import Damaged, Lz4Frames, decompress
from autopsy.incoming.material import Material
from autopsy.incoming.reading import read_evidence
from support.builds import missing
from support.built import pastes
from support.built.imported import NOWHERE
from support.built.pastes import DISPATCH, POLL
from tests.incoming.test_core_file import STACK, WORDS, core_of, made

DUMP = pastes.dump(("qemu-system-x86", (*POLL, "blk_drain", *DISPATCH))).encode()


def material(folder: Path, content: bytes, core_to: int = NOWHERE) -> Material:
    path = folder / "given"
    path.write_bytes(content)
    with path.open("rb") as file:
        return read_evidence([file.fileno()], core_to)


def lz4(data: bytes, *options: str) -> bytes:
    if not shutil.which("lz4"):
        missing("apt install lz4")
    return subprocess.run(["lz4", "-c", *options], input=data, capture_output=True, check=True).stdout


def unpacked(data: bytes) -> bytes:
    frames = Lz4Frames(io.BytesIO(data))
    return b"".join(iter(lambda: frames.take(1 << 20), b""))


def zipped(*files: tuple[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return packed.getvalue()


def tarred(*files: tuple[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, data in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return packed.getvalue()


@pytest.mark.parametrize(
    "options", [(), ("-9",), ("-BD", "-B4"), ("-BX", "-B5"), ("--no-frame-crc", "-B7"), ("--content-size",)]
)
def test_what_lz4_packs_is_unpacked(options: tuple[str, ...]) -> None:
    noise = hashlib.shake_128(b"").digest(100_000)
    data = bytes(5_000_000) + noise + b"a line of a log\n" * 50_000 + noise + b"the end"
    assert unpacked(lz4(data, *options)) == data


def test_frames_one_after_the_other_and_what_may_be_skipped_are_one_file() -> None:
    skipped = struct.pack("<II", 0x184D2A53, 5) + b"12345"
    assert unpacked(lz4(b"one ") + skipped + lz4(b"two") + skipped) == b"one two"


@given(some.binary(max_size=300), some.integers(0, 299), some.binary(min_size=1, max_size=3))
def test_damaged_lz4_is_refused_in_our_own_words(data: bytes, place: int, noise: bytes) -> None:
    whole = bytearray(lz4_stored(data))
    whole[place % len(whole) : place % len(whole) + len(noise)] = noise
    try:
        unpacked(bytes(whole))
        decompress(data, b"", 1 << 16)
    except Damaged:
        return


def lz4_stored(data: bytes) -> bytes:
    """Return a frame whose only block is not compressed."""
    return b"\x04\x22\x4d\x18\x60\x40\x82" + struct.pack("<I", len(data) | 1 << 31) + data + bytes(4)


def test_a_block_that_holds_more_than_its_frame_allows_is_refused() -> None:
    bomb = b"\x1f" + b"A" + b"\x01\x00" + b"\xff" * 100_000 + b"\x00"
    with pytest.raises(Damaged):
        decompress(bomb, b"", 64 << 10)


def test_a_core_compressed_with_lz4_is_streamed(tmp_path: Path) -> None:
    plain = made(tmp_path / "plain", 64 << 20).read_bytes()
    with (tmp_path / "core").open("w+b") as core:
        found = material(tmp_path, lz4(plain), core.fileno())
    assert (found.seen[0].what, core_of(found).truncated) == ("a core", False)
    assert Core(tmp_path / "core").read(STACK, len(WORDS)) == WORDS


@pytest.mark.parametrize(
    "pack",
    [
        lz4,
        lambda data: zipped(("bt.txt", data)),
        lambda data: zipped(("report.tar.gz", gzip.compress(tarred(("bt.txt", data))))),
        lambda data: tarred(("bt.zip", zipped(("bt.txt", data)))),
        lambda data: tarred(("bt.lz4", lz4(data))),
        lambda data: gzip.compress(zipped(("../../etc/passwd", data))),
    ],
    ids=["lz4", "zip", "a tarball in a zip", "a zip in a tarball", "lz4 in a tarball", "a zip in gzip"],
)
def test_a_backtrace_is_found_in(pack: object, tmp_path: Path) -> None:
    assert material(tmp_path, pack(DUMP)).paste.frames > 5  # type: ignore[operator]  # one of the above


def test_a_core_in_a_zip_archive_is_taken(tmp_path: Path) -> None:
    plain = made(tmp_path / "plain", 4 << 20).read_bytes()
    with (tmp_path / "core").open("w+b") as core:
        found = material(tmp_path, zipped(("notes.txt", b"nothing"), ("core.4242", plain)), core.fileno())
    assert core_of(found).pid == 4242


def test_what_is_damaged_in_an_archive_costs_its_other_files_nothing(tmp_path: Path) -> None:
    broken = zstandard.compress(DUMP)[:-9] + b"something"
    for whole in (tarred(("a.zst", broken), ("b.txt", DUMP)), zipped(("a.zst", broken), ("b.txt", DUMP))):
        found = material(tmp_path, whole)
        assert found.seen[0].of_use
        assert found.paste.frames > 5


def test_an_archive_that_was_cut_short_is_read_as_far_as_it_goes_and_told(tmp_path: Path) -> None:
    whole = tarred(("a.txt", DUMP), ("b.txt", DUMP * 100))
    found = material(tmp_path, gzip.compress(whole)[:-400])
    assert found.seen[0].of_use
    assert "cut short" in found.seen[0].what
    assert material(tmp_path, zipped(("a.txt", DUMP))[:-10]).seen[0].of_use is False


def test_a_file_of_a_zip_archive_that_is_encrypted_is_told(tmp_path: Path) -> None:
    whole = bytearray(zipped(("a.txt", DUMP)))
    whole[6] |= 1  # of the file's own header, and of the directory below
    whole[whole.index(b"PK\x01\x02") + 8] |= 1
    found = material(tmp_path, bytes(whole))
    assert not found.seen[0].of_use
    assert any("encrypted" in note for note in found.notes)


def test_a_zip_archive_whose_directory_is_absurd_is_not_read(tmp_path: Path) -> None:
    whole = bytearray(zipped(("a.txt", DUMP)))
    place = whole.rindex(b"PK\x05\x06")
    struct.pack_into("<I", whole, place + 12, 1 << 30)
    found = material(tmp_path, bytes(whole))
    assert not found.seen[0].of_use
    assert "directory" in found.seen[0].what


def test_the_bytes_of_a_zip_archive_are_bounded_whatever_it_claims(tmp_path: Path) -> None:
    (tmp_path / "bomb").write_bytes(zipped(*((f"{number}", bytes(1 << 20)) for number in range(9))))
    told: list[str] = []
    with (tmp_path / "bomb").open("rb") as file:
        sizes = [len(member.read()) for _, member in zip_archive.members(file, 100, 5 << 20, told)]
    assert sum(sizes) == 5 << 20
    assert any("no further" in each for each in told)


def test_links_and_devices_in_an_archive_are_passed_over(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, kind in (("link", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("device", tarfile.CHRTYPE)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.devmajor, entry.devminor = kind, os.devnull, 1, 5
            archive.addfile(entry)
        entry = tarfile.TarInfo("../../../bt.txt")
        entry.size = len(DUMP)
        archive.addfile(entry, io.BytesIO(DUMP))
    found = material(tmp_path, packed.getvalue())
    assert found.paste.frames > 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given"]


def test_archives_inside_of_one_another_are_read_three_deep(tmp_path: Path) -> None:
    whole = DUMP
    for _ in range(3):
        whole = zipped(("x", whole))
    assert material(tmp_path, whole).paste.frames > 5
    for _ in range(60):
        whole = zipped(("x.zip", whole))
    assert material(tmp_path, whole).paste.frames == 0
