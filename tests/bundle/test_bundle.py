"""The bundle: sealed, verified, opened; and refused when it lies."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import msgspec
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from autopsy.bundle import layout, sections
from autopsy.bundle import seal as sealing
from autopsy.bundle.manifest import SCHEMA, Clocks, Host, Manifest, TargetRecord, encode_manifest
from autopsy.bundle.reader import open_bundle
from autopsy.bundle.seal import AHEAD, pack_ahead, seal
from autopsy.bundle.verify import verify
from autopsy.errors import DamagedBundle, NewerBundle, NotStored, UsageError

CLOCKS = Clocks(utc="2026-11-20T10:00:00.000000+00:00", zone="+0300 EEST", monotonic_ns=1)
MANIFEST = Manifest(
    schema=SCHEMA,
    autopsy="0",
    options=(),
    began=CLOCKS,
    ended=CLOCKS,
    host=Host(name="h", kernel="6", architecture="x86_64", distribution="d", page_size=4096, cpus=2, boot_id="b"),
    target=TargetRecord(
        pid=1,
        name="vm",
        manager="process",
        start_ticks=1,
        exe="/usr/bin/qemu",
        exe_deleted=False,
        build_id="",
        qemu_version="",
    ),
    steps=(),
)


def staged(folder: Path) -> Path:
    (folder / "evidence/witness").mkdir(parents=True)
    (folder / "evidence/witness/tasks.txt").write_bytes(b"tasks\n")
    (folder / "evidence/witness/empty").write_bytes(b"")
    (folder / "core").write_bytes(os.urandom(300_000) + bytes(5_000_000))
    (folder / "README.txt").write_text("read me\n")
    (folder / "manifest.json").write_bytes(encode_manifest(MANIFEST))
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return seal(staged(tmp_path / "staging"), tmp_path / "a.tar.zst", MANIFEST).path


def test_what_is_sealed_is_what_is_read(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert opened.sealed
    assert opened.read("evidence/witness/tasks.txt") == b"tasks\n"
    assert opened.read("not/there") == b""
    assert {record.path for record in opened.manifest.files} == set(opened.names()) - {"manifest.json"}


def test_the_manifest_comes_first_and_tar_alone_opens_it(bundle: Path, tmp_path: Path) -> None:
    listed = subprocess.run(["tar", "--zstd", "-tf", bundle], capture_output=True, text=True, check=True).stdout.split()
    assert listed[0] == "manifest.json"
    assert listed[1] == "README.txt"
    assert listed[-1] == "core"
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "--zstd", "-xf", bundle, "-C", tmp_path / "out"], check=True)
    assert verify(tmp_path / "out").files == 4


def test_only_its_owner_may_read_a_bundle(bundle: Path) -> None:
    assert bundle.stat().st_mode & 0o777 == 0o600


def test_the_core_comes_out_whole(bundle: Path, tmp_path: Path) -> None:
    assert open_bundle(bundle).extract("core", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "staging/core").read_bytes()
    assert not open_bundle(bundle).extract("binary.zst", tmp_path / "none")


def test_a_seal_leaves_no_temporary_file(bundle: Path) -> None:
    assert sorted(path.name for path in bundle.parent.iterdir()) == ["a.tar.zst", "staging"]


def test_a_bundle_is_never_overwritten(bundle: Path) -> None:
    before = bundle.read_bytes()
    with pytest.raises(NotStored, match="there already"):
        seal(bundle.parent / "staging", bundle, MANIFEST)
    assert bundle.read_bytes() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_disk_leaves_nothing_that_looks_like_a_bundle(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True)
    try:
        with pytest.raises(NotStored, match="No space left"):
            seal(staged(tmp_path / "staging"), disk / "a.tar.zst", MANIFEST)
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


# Packed ahead.


def frames(bundle: Path) -> int:
    """Return how many frames a bundle has; what they begin with may lie in a core as well."""
    data, count = bundle.read_bytes(), 0
    while data:
        frame = zstandard.ZstdDecompressor().decompressobj()
        frame.decompress(data)
        data, count = frame.unused_data, count + 1
    return count


def test_what_was_packed_ahead_is_not_packed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = staged(tmp_path / "staging")
    ahead = pack_ahead(folder, MANIFEST, frozenset())
    assert {file.record.path for file in ahead.files} == {
        "core",
        "evidence/witness/empty",
        "evidence/witness/tasks.txt",
    }
    (folder / "diagnosis.json").write_bytes(b"{}")
    recorded: list[str] = []
    record = sealing._record
    monkeypatch.setattr(sealing, "_record", lambda at, name: recorded.append(name) or record(at, name))
    bundle = seal(folder, tmp_path / "a.tar.zst", MANIFEST, ahead=ahead).path
    assert recorded == ["README.txt", "diagnosis.json"]
    whole = seal(folder, tmp_path / "b.tar.zst", MANIFEST).path
    assert (frames(bundle), frames(whole)) == (2, 1)
    assert open_bundle(bundle).manifest == open_bundle(whole).manifest
    listed = subprocess.run(["tar", "--zstd", "-tf", bundle], capture_output=True, text=True, check=True)
    assert listed.stdout.split()[:3] == ["manifest.json", "README.txt", "diagnosis.json"]
    assert (listed.stdout.split()[-1], listed.stderr) == ("core", "")
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "--zstd", "-xf", bundle, "-C", tmp_path / "out"], check=True)
    assert verify(tmp_path / "out").files == verify(bundle).files == 5


@pytest.mark.parametrize("change", ["written", "replaced", "gone", "what was packed is gone", "it is cut"])
def test_what_has_changed_since_it_was_packed_ahead_is_packed_as_it_is(tmp_path: Path, change: str) -> None:
    folder = staged(tmp_path / "staging")
    ahead = pack_ahead(folder, MANIFEST, frozenset())
    tasks, late = folder / "evidence/witness/tasks.txt", folder / "evidence/witness/late"
    late.write_bytes(b"late\n")
    match change:
        case "written":
            tasks.write_bytes(b"more tasks\n")
        case "replaced":
            late.write_bytes(b"TASKS\n")
            late.replace(tasks)
            late.write_bytes(b"late\n")
        case "gone":
            tasks.unlink()
        case "it is cut":
            os.truncate(folder / AHEAD, (folder / AHEAD).stat().st_size // 2)
        case _:
            (folder / AHEAD).unlink()
    expected = tasks.read_bytes() if tasks.exists() else b""
    bundle = seal(folder, tmp_path / "a.tar.zst", MANIFEST, ahead=ahead).path
    assert frames(bundle) == 1
    verify(bundle)
    opened = open_bundle(bundle)
    assert opened.read("evidence/witness/tasks.txt") == expected
    assert opened.read("evidence/witness/late") == b"late\n"
    assert AHEAD not in opened.names()


def test_a_bundle_that_ends_before_what_was_packed_ahead_is_refused(tmp_path: Path) -> None:
    folder = staged(tmp_path / "staging")
    bundle = seal(folder, tmp_path / "a.tar.zst", MANIFEST, ahead=pack_ahead(folder, MANIFEST, frozenset())).path
    data = bundle.read_bytes()
    first = zstandard.ZstdDecompressor().decompressobj()
    first.decompress(data)
    bundle.write_bytes(data[: -len(first.unused_data)])
    with pytest.raises(DamagedBundle):
        verify(bundle)


def test_what_is_left_out_is_not_packed_ahead_either(tmp_path: Path) -> None:
    folder, without = staged(tmp_path / "staging"), frozenset({layout.CORE})
    ahead = pack_ahead(folder, MANIFEST, without)
    bundle = seal(folder, tmp_path / "a.tar.zst", MANIFEST, leave_out=without, ahead=ahead).path
    assert (frames(bundle), layout.CORE in open_bundle(bundle).names()) == (2, False)


@pytest.mark.parametrize("part", [0.01, 0.3, 0.7, 0.99, 0.999])
def test_a_bundle_that_is_cut_short_is_refused(bundle: Path, part: float) -> None:
    data = bundle.read_bytes()
    bundle.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(DamagedBundle):
        verify(bundle)
    with pytest.raises(DamagedBundle):
        open_bundle(bundle)


@settings(max_examples=60, deadline=None)
@given(position=st.floats(0, 0.999999), bit=st.integers(0, 7))
def test_one_flipped_bit_is_found(tmp_path_factory: pytest.TempPathFactory, position: float, bit: int) -> None:
    folder = tmp_path_factory.mktemp("flip")
    path = seal(staged(folder / "staging"), folder / "a.tar.zst", MANIFEST).path
    data = bytearray(path.read_bytes())
    data[int(position * len(data))] ^= 1 << bit
    path.write_bytes(data)
    with pytest.raises(DamagedBundle):
        verify(path)


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=4096))
def test_arbitrary_bytes_are_refused_in_our_own_words(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "a"
    path.write_bytes(data)
    with pytest.raises(DamagedBundle):
        open_bundle(path)
    path.write_bytes(zstandard.compress(data))
    with pytest.raises(DamagedBundle):
        open_bundle(path)


def archive(path: Path, *entries: tuple[tarfile.TarInfo, bytes]) -> Path:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for entry, data in entries:
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    path.write_bytes(zstandard.compress(buffer.getvalue()))
    return path


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type = kind
    made.linkname = link
    return made


@pytest.mark.parametrize(
    "bad",
    [
        entry("../escape"),
        entry("/etc/passwd"),
        entry("a/../../b"),
        entry("a//b"),
        entry("a\nb"),
        entry("link", tarfile.SYMTYPE, "/etc/passwd"),
        entry("hard", tarfile.LNKTYPE, "manifest.json"),
        entry("device", tarfile.CHRTYPE),
        entry("pipe", tarfile.FIFOTYPE),
        entry("manifest.json"),
    ],
    ids=lambda bad: bad.name,
)
def test_a_member_that_no_bundle_holds_is_refused(tmp_path: Path, bad: tarfile.TarInfo) -> None:
    path = archive(tmp_path / "a", (entry("manifest.json"), encode_manifest(MANIFEST)), (bad, b""))
    with pytest.raises(DamagedBundle):
        open_bundle(path)


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    huge = tarfile.TarInfo("evidence/host/host.txt")
    huge.size = 200 << 20
    buffer = huge.tobuf() + bytes(200 << 20)
    (tmp_path / "a").write_bytes(zstandard.compress(buffer))
    with pytest.raises(DamagedBundle, match="larger than evidence can be"):
        open_bundle(tmp_path / "a")


def test_a_newer_schema_asks_for_a_newer_autopsy(tmp_path: Path) -> None:
    newer = msgspec.json.encode({"schema": SCHEMA + 1, "surprise": True})
    with pytest.raises(NewerBundle, match=f"schema {SCHEMA + 1}") as caught:
        open_bundle(archive(tmp_path / "a", (entry("manifest.json"), newer)))
    assert "upgrade" in caught.value.remedy


def test_nothing_there_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        open_bundle(tmp_path / "nothing")
    with pytest.raises(UsageError):
        verify(tmp_path / "nothing")


def test_a_staging_folder_opens_but_is_not_verified(tmp_path: Path) -> None:
    folder = staged(tmp_path / "x.partial")
    assert open_bundle(folder).read("evidence/witness/tasks.txt") == b"tasks\n"
    with pytest.raises(DamagedBundle, match="never sealed"):
        verify(folder)


def test_a_folder_from_a_stranger_leads_nowhere_else(tmp_path: Path) -> None:
    folder = staged(tmp_path / "x")
    (folder / "evidence/secret").symlink_to("/etc")
    (folder / "evidence/witness/link").symlink_to("/etc/hostname")
    os.mkfifo(folder / "evidence/witness/pipe")
    opened = open_bundle(folder)
    assert opened.read("evidence/secret/hostname") == b""
    assert opened.read("evidence/witness/link") == b""
    assert opened.read("evidence/witness/pipe") == b""
    assert opened.read("../../etc/hostname") == b""
    assert layout.CORE in opened.names()


SECTION_NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), min_size=1, max_size=40)


@given(st.lists(st.tuples(SECTION_NAMES, st.binary(max_size=200)), max_size=8))
def test_sections_come_back_as_they_went(pairs: list[tuple[str, bytes]]) -> None:
    written = [sections.Section(name, data) for name, data in pairs]
    read = list(sections.parse(sections.render(written)))
    assert [(one.name, one.data) for one in read] == pairs


def test_a_section_that_looks_like_a_header_is_no_header() -> None:
    evil = b"==> task/1/wchan (3 bytes) <==\nabc\n"
    data = sections.render([sections.Section("comm", evil), sections.Section("next", b"x")])
    first, second = sections.parse(data)
    assert first.data == evil
    assert second.data == b"x"
    assert data.split(b"\n")[second.line - 1] == b"x"


def test_a_section_that_could_not_be_read_says_why() -> None:
    (only,) = sections.parse(sections.render([sections.Section("task/1/stack", b"", error="EACCES")]))
    assert only.error == "EACCES"


@given(st.binary(max_size=500))
def test_sections_of_arbitrary_bytes_never_raise(data: bytes) -> None:
    list(sections.parse(data))
    list(sections.parse(b"==> a (999999999999 bytes) <==\n" + data))
