"""Bundles from strangers: refused or harmless, in bounded memory and time, and nothing of them reaches the disk."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from autopsy.bundle import layout
from autopsy.bundle.archive import MOST_MEMBERS
from autopsy.bundle.manifest import SCHEMA, encode_manifest
from autopsy.bundle.reader import open_bundle
from autopsy.bundle.verify import verify
from autopsy.commands.redact import redact
from autopsy.errors import DamagedBundle
from support import lab
from tests.bundle.test_bundle import MANIFEST, archive, entry, staged

MOST_MEMORY = 1 << 30  # bytes of address space: what the reader may keep is 256 MB, Python and its libraries the rest
MOST_SECONDS = 20.0
FIXTURE = lab.HOUSE / "fixtures" / "throttle-timer-7.2"

READ = {
    "analyze": ("analyze",),
    "analyze --json": ("analyze", "--json"),
    "report": ("report", "--format", "html"),
    "report md": ("report", "--format", "md"),
    "verify": ("verify",),
    "replay": ("replay",),
    "redact": ("redact",),
    "diff": ("diff",),
}


def run(bundle: Path, *words: str, where: Path) -> subprocess.CompletedProcess[str]:
    """Run a command on a bundle, in an empty folder and with a bound on memory."""

    def bound() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 20, 64 << 20))

    command = [sys.executable, "-m", "autopsy", words[0], str(bundle), *words[1:]]
    if words[0] == "diff":
        command.append(str(bundle))
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=MOST_SECONDS,
        check=False,
        cwd=where,
        env={**os.environ, "PYTHONPATH": str(lab.HOUSE), "TMPDIR": str(where), "HOME": str(where)},
        preexec_fn=bound,
    )


def compressed(path: Path, parts: Callable[[Callable[[bytes], object]], None]) -> Path:
    """Write a .tar.zst whose tar is made piece by piece, however large."""
    with open(path, "wb") as file, zstandard.ZstdCompressor().stream_writer(file) as packed:
        parts(packed.write)
    return path


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    made = entry(name, kind)
    made.size = size
    return made.tobuf(tarfile.GNU_FORMAT)


def zeros(write: Callable[[bytes], object], size: int) -> None:
    block = bytes(1 << 20)
    for _ in range(size >> 20):
        write(block)


def a_bomb(path: Path) -> Path:
    """Make a member of 12 GB that packs to a megabyte."""

    def parts(write: Callable[[bytes], object]) -> None:
        write(header("evidence/host/host.txt", 12 << 30))
        zeros(write, 256 << 20)

    return compressed(path, parts)


def many_files(path: Path) -> Path:
    """Make twice as many members as are allowed; the reader stops at the first too many, so millions cost no more."""

    def parts(write: Callable[[bytes], object]) -> None:
        data = encode_manifest(MANIFEST)
        write(header("manifest.json", len(data)) + data.ljust(-(-len(data) // 512) * 512, b"\0"))
        for number in range(2 * MOST_MEMBERS):
            write(header(f"evidence/host/{number}", 0))
        write(bytes(1024))

    return compressed(path, parts)


def a_lying_header(path: Path) -> Path:
    """Make a header that announces 8 exabytes."""
    return compressed(path, lambda write: write(header("evidence/host/host.txt", (1 << 63) - 1) + bytes(4096)) and None)


def a_sparse_member(path: Path) -> Path:
    """Make a GNU sparse member: a terabyte of nothing."""
    made = bytearray(header("evidence/host/host.txt", 512, tarfile.GNUTYPE_SPARSE))
    made[386:410] = b"00000000000\0" + b"00000001000\0"
    made[483:495] = b"\x80" + (1 << 40).to_bytes(11, "big")
    made[148:156] = b" " * 8
    made[148:156] = f"{sum(made[:512]):06o}\0 ".encode()
    return compressed(path, lambda write: write(bytes(made) + bytes(2048)) and None)


def a_long_pax_header(path: Path) -> Path:
    """Make a pax header of 2 GB, which tarfile would read as one string."""

    def parts(write: Callable[[bytes], object]) -> None:
        write(header("x", 2 << 30, tarfile.XHDTYPE))
        zeros(write, 64 << 20)

    return compressed(path, parts)


def a_huge_window(path: Path) -> Path:
    """Make a zstd frame that asks for a window of 2 GB."""
    parameters = zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=True)
    data = io.BytesIO()
    with zstandard.ZstdCompressor(compression_params=parameters).stream_writer(data, closefd=False) as packed:
        packed.write(b"x" * 100_000)
    path.write_bytes(data.getvalue())
    return path


def deep_json(path: Path) -> Path:
    return archive(path, (entry("manifest.json"), b'{"schema": 1, "x": ' + b"[" * 5_000_000))


def a_newer_schema(path: Path) -> Path:
    return archive(path, (entry("manifest.json"), json.dumps({"schema": SCHEMA + 9}).encode()))


def traversal(path: Path) -> Path:
    return archive(path, (entry("manifest.json"), encode_manifest(MANIFEST)), (entry("../../escaped"), b"x"))


def a_device(path: Path) -> Path:
    return archive(path, (entry("manifest.json"), encode_manifest(MANIFEST)), (entry("core", tarfile.CHRTYPE), b""))


def a_link(path: Path) -> Path:
    link = entry("evidence/host/host.txt", tarfile.SYMTYPE, "/etc/shadow")
    return archive(path, (entry("manifest.json"), encode_manifest(MANIFEST)), (link, b""))


REFUSED = (
    *(a_bomb, many_files, a_lying_header, a_sparse_member, a_long_pax_header, a_huge_window),
    *(deep_json, a_newer_schema, traversal, a_device, a_link),
)


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_a_hostile_archive_is_refused_by_every_reader_of_bundles(make: Callable[[Path], Path], tmp_path: Path) -> None:
    bundle = make(tmp_path / "strange.tar.zst")
    began = time.monotonic()
    with pytest.raises(DamagedBundle):
        open_bundle(bundle)
    with pytest.raises(DamagedBundle):
        verify(bundle)
    with pytest.raises(DamagedBundle):
        redact(bundle, None)
    assert time.monotonic() - began < MOST_SECONDS
    assert [path.name for path in tmp_path.iterdir()] == ["strange.tar.zst"]


@pytest.mark.parametrize("name", ["analyze", "verify"])
def test_a_command_refuses_a_bomb_within_a_gibibyte_of_address_space(name: str, tmp_path: Path) -> None:
    bundle = a_bomb(tmp_path / "strange.tar.zst")
    empty = tmp_path / "empty"
    empty.mkdir()
    done = run(bundle, *READ[name], where=empty)
    assert done.returncode == 7, done.stderr
    assert "Traceback" not in done.stderr
    assert list(empty.iterdir()) == []


def test_a_core_of_four_gibibytes_is_too_much(tmp_path: Path) -> None:
    def parts(write: Callable[[bytes], object]) -> None:
        data = encode_manifest(MANIFEST)
        write(header("manifest.json", len(data)) + data.ljust(-(-len(data) // 512) * 512, b"\0"))
        write(header("core", 5 << 30))
        zeros(write, 64 << 20)

    with pytest.raises(DamagedBundle, match="than any bundle holds"):
        open_bundle(compressed(tmp_path / "x", parts))


EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>&\u202e\x1b]0;owned\x07\x1b[2J{{7*7}}{%print(1)%}'


def evil_strings(folder: Path) -> Path:
    """Put markup, terminal escapes and template code into every string of every JSON file of a real capture."""

    def spoiled(value: object) -> object:
        if isinstance(value, dict):
            return {key: spoiled(each) for key, each in value.items()}
        if isinstance(value, list):
            return [spoiled(each) for each in value]
        return value + EVIL if isinstance(value, str) and len(value) < 200 else value

    for path in folder.rglob("*.json"):
        if path.name == layout.MANIFEST:
            told = json.loads(path.read_text())
            told["target"]["name"] += EVIL
            told["host"]["name"] += EVIL
            told["notes"] = [EVIL]
            told["options"] = [EVIL]
            for step in told["steps"]:
                step["why"] += EVIL
            path.write_text(json.dumps(told))
        else:
            path.write_text(json.dumps(spoiled(json.loads(path.read_text() or "null"))))
    for path in folder.rglob("*.txt"):
        path.write_bytes(path.read_bytes().replace(b"qemu", EVIL.encode()))
    return folder


@pytest.mark.parametrize("words", [READ[name] for name in ("analyze", "report", "report md", "diff")], ids="/".join)
def test_strings_from_a_stranger_are_harmless_on_page_and_terminal(words: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    subprocess.run(["cp", "-r", FIXTURE / "bundle", folder], check=True)
    evil_strings(folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    done = run(folder, *words, where=empty)
    assert done.returncode == 0, done.stderr
    for text in (done.stdout, done.stderr):
        assert "\x1b" not in text
        assert "\x07" not in text
        assert "\u202e" not in text
    if words[0] == "report":
        assert not re.search(r"(?<!\\)<script>alert", done.stdout)
        assert not re.search(r"(?<!\\)<img src=x", done.stdout)


def test_replay_of_a_folder_of_strangers_bundles_ends_in_bounded_memory(tmp_path: Path) -> None:
    strangers = tmp_path / "strangers"
    strangers.mkdir()
    for make in REFUSED:
        make(strangers / f"{make.__name__}.tar.zst")
    empty = tmp_path / "empty"
    empty.mkdir()
    done = run(strangers, "replay", "--jobs", "2", where=empty)
    assert done.returncode == 7, done.stderr
    assert "Traceback" not in done.stderr
    assert list(empty.iterdir()) == []


def test_a_folder_with_links_is_sealed_without_what_they_lead_to(tmp_path: Path) -> None:
    from autopsy.commands.seal import seal_leftover  # noqa: PLC0415 - only this test seals

    folder = staged(tmp_path / "autopsy-x.partial")
    (folder / "evidence/witness/link").symlink_to("/etc/passwd")
    os.mkfifo(folder / "evidence/witness/pipe")
    (folder / "evidence/outside").symlink_to("/etc")
    sealed = seal_leftover(folder, tmp_path)
    assert not any("link" in name or "pipe" in name or "outside" in name for name in open_bundle(sealed.path).names())
