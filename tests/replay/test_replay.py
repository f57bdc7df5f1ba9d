from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import time
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec
import pytest
import zstandard
from fixtures_shapes import SHAPES

from autopsy.bundle import layout
from autopsy.bundle.manifest import SCHEMA, encode_manifest
from autopsy.bundle.reader import open_bundle
from autopsy.bundle.seal import seal
from autopsy.bundle.verify import verify
from autopsy.diagnose.verdict import diagnose
from autopsy.errors import UsageError
from autopsy.facts.gather import gather_facts
from autopsy.linux.worker_pool import Done, work_through
from autopsy.replay import cases, expected, junit
from autopsy.replay import replay as words
from autopsy.replay.replay import Replayed, replay
from support import stored

BY_CASE = [pytest.param(case, id=case.home.name) for case in stored.CASES]


def autopsy(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "autopsy", "replay", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def all_of(*paths: Path, update: bool = False, seconds: float = 30.0) -> dict[str, Replayed]:
    return {each.name: each for each in replay(cases.find_cases(paths), update=update, jobs=2, seconds=seconds)}


@pytest.fixture
def a_case(tmp_path: Path) -> Path:
    """Return a copy of one stored case."""
    home = tmp_path / "cases" / "one"
    shutil.copytree(stored.right().home, home)
    return home


@pytest.mark.parametrize("case", BY_CASE)
def test_every_stored_capture_is_diagnosed_as_it_is_known_to_be(case: stored.Stored) -> None:
    told = cases.read_expected(case.home)
    assert told is not None
    changed = expected.changes(told, diagnose(gather_facts(open_bundle(case.bundle))))
    assert [f"{each.what}: {each.old} → {each.new}" for each in changed] == []


@pytest.mark.parametrize("case", stored.CASES, ids=lambda case: case.home.name)
def test_every_stored_capture_is_whole_and_tells_where_it_is_from(case: stored.Stored) -> None:
    assert verify(case.bundle).files > 20
    provenance = (case.home / cases.PROVENANCE).read_text()
    assert f"# {case.home.name}" in provenance
    for told in ("- QEMU: ", "- Captured: 20", "- Expected: "):
        assert told in provenance


def test_stored_captures_hold_nothing_of_one_machine() -> None:
    found = [
        f"{case.home.name}: {name}: {match.group()!r}"
        for case in stored.CASES
        for name, data in stored.files(case.bundle).items()
        for match in stored.FOREIGN.finditer(data)
    ]
    assert found == []


def test_there_is_a_case_for_every_question_that_started_this_and_for_every_false_alarm() -> None:
    shapes = {case.home.name.rpartition("-10.0.2")[0] or case.home.name.rpartition("-7.2")[0] for case in stored.CASES}
    assert len(stored.CASES) >= 20
    assert shapes >= {
        *("throttle-deadlock", "lsi-throttle", "healthy-vcpu-burns", "guest-spins", "savevm-stalled"),
        *("frozen-native", "frozen-threads", "frozen-io-uring"),
        *("healthy-idle", "healthy-busy", "throttled-going-on", "throttled-one-iothread", "paused"),
    }


def test_stored_captures_stay_small() -> None:
    assert sum(path.stat().st_size for path in stored.FIXTURES.rglob("*") if path.is_file()) < 8_000_000


def test_what_is_expected_is_what_each_wedge_was_made_for() -> None:
    made = {shape.name: (shape.where, shape.signature) for shape in SHAPES}
    told = {case.home.name: cases.read_expected(case.home) for case in stored.CASES}
    assert {name: (each.where, each.signature) for name, each in told.items() if each is not None} == made


def test_an_unpacked_bundle_and_its_tarball_give_the_same_answer(tmp_path: Path) -> None:
    case = stored.right()
    folder = tmp_path / "folder"
    for name, data in stored.files(case.bundle).items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    assert diagnose(gather_facts(open_bundle(folder))) == diagnose(gather_facts(open_bundle(case.bundle)))


def test_replay_says_what_passed_in_one_line_each_and_returns_0(a_case: Path) -> None:
    done = autopsy(a_case.parent)
    assert done.stdout.splitlines() == ["passed   cases/one", "1 passed, 0 failed"]
    assert done.returncode == 0


def test_a_changed_verdict_is_shown_old_against_new_and_returns_7(a_case: Path) -> None:
    wrong = (a_case / cases.EXPECTED).read_text().replace('"where": "throttle"', '"where": "device"')
    (a_case / cases.EXPECTED).write_text(wrong)
    done = autopsy(a_case)
    assert done.stdout.splitlines() == ["CHANGED  one", "           where      device → throttle", "0 passed, 1 failed"]
    assert done.returncode == 7


def test_update_writes_what_is_expected_from_now_on(a_case: Path) -> None:
    right = (a_case / cases.EXPECTED).read_bytes()
    wrong = right.replace(b'"where": "throttle"', b'"where": "device"')
    (a_case / cases.EXPECTED).write_bytes(wrong)
    done = autopsy(a_case, "--update")
    assert done.stdout.splitlines()[0] == "updated  one"
    assert done.returncode == 0
    assert (a_case / cases.EXPECTED).read_bytes() == right
    assert autopsy(a_case).returncode == 0


def test_update_writes_the_expectation_of_a_new_case_and_leaves_the_others_alone(a_case: Path) -> None:
    (a_case / cases.EXPECTED).unlink()
    assert "has no expected.json" in all_of(a_case)["one"].error
    updated = all_of(a_case, update=True)["one"]
    assert (updated.passed, updated.updated) == (True, True)
    written = (a_case / cases.EXPECTED).stat()
    assert not all_of(a_case, update=True)["one"].updated
    assert (a_case / cases.EXPECTED).stat().st_ino == written.st_ino


def test_update_replaces_a_link_and_never_writes_through_it(a_case: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("{}")
    (a_case / cases.EXPECTED).unlink()
    (a_case / cases.EXPECTED).symlink_to(precious)
    assert "cannot be read" in all_of(a_case)["one"].error
    (a_case / cases.EXPECTED).unlink()
    (a_case / f".{cases.EXPECTED}.partial").symlink_to(precious)
    assert all_of(a_case, update=True)["one"].passed
    assert precious.read_text() == "{}"


def test_what_must_be_ruled_out_and_is_not_is_a_change(a_case: Path) -> None:
    told = cases.read_expected(a_case)
    assert told is not None
    cases.write_expected(a_case, msgspec.structs.replace(told, ruled_out=(told.signature,)))
    (change,) = all_of(a_case)["one"].changes
    assert (change.what, change.old) == ("ruled out", told.signature)


def test_a_bundle_alone_is_held_against_its_own_sealed_diagnosis(tmp_path: Path) -> None:
    case = stored.right()
    found = diagnose(gather_facts(open_bundle(case.bundle)))
    for name, sealed in (("same", found), ("other", msgspec.structs.replace(found, confidence="possible"))):
        resealed(case.bundle, tmp_path / f"{name}.tar.zst", {layout.DIAGNOSIS: msgspec.json.encode(sealed)})
    replayed = all_of(tmp_path)
    assert replayed[f"{tmp_path.name}/same"].passed
    (change,) = replayed[f"{tmp_path.name}/other"].changes
    assert (change.what, change.old) == ("confidence", "possible")
    assert not all_of(tmp_path / "other.tar.zst", update=True)["other.tar.zst"].passed


def test_nothing_to_replay_returns_2(tmp_path: Path) -> None:
    assert autopsy(tmp_path).returncode == 2
    assert autopsy(tmp_path / "not-there").returncode == 2
    assert autopsy().returncode == 2
    with pytest.raises(UsageError, match="nothing to replay"):
        cases.find_cases((tmp_path,))


def test_a_bundle_of_an_older_schema_still_replays(a_case: Path) -> None:
    bundle = next(a_case.glob("*.tar.zst"))
    manifest = open_bundle(bundle).manifest
    raw = msgspec.json.decode(encode_manifest(msgspec.structs.replace(manifest, schema=SCHEMA - 1)))
    del raw["notes"], raw["files"]
    for step in raw["steps"]:
        del step["left_behind"], step["stop_ns"]
    folder = a_case / cases.UNPACKED
    for name, data in stored.files(bundle).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(msgspec.json.encode(raw) if name == layout.MANIFEST else data)
    bundle.unlink()
    assert all_of(a_case)["one"].passed


def test_a_bundle_of_a_newer_schema_is_told_and_costs_no_other_case(a_case: Path) -> None:
    newer = shutil.copytree(a_case, a_case.parent / "newer")
    bundle = next(newer.glob("*.tar.zst"))
    resealed(bundle, a_case.parent / "new.tar.zst", {}, schema=SCHEMA + 1)
    (a_case.parent / "new.tar.zst").rename(bundle)
    replayed = all_of(a_case.parent)
    assert "upgrade autopsy" in replayed["cases/newer"].error
    assert replayed["cases/one"].passed


def test_a_strangers_folder_ends_and_costs_no_other_case(a_case: Path, tmp_path: Path) -> None:
    folder = a_case.parent
    (folder / "loop").symlink_to(folder)
    (folder / "link.tar.zst").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.tar.zst")
    deep = folder.joinpath(*["deep"] * 200)
    deep.mkdir(parents=True)
    (folder / "garbage.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(range(256)) * 9)
    (folder / "empty.tar.zst").touch()
    bomb(folder / "bomb.tar.zst")
    strange = folder / "strange\x1b[31m\n"
    shutil.copytree(a_case, strange)
    (strange / cases.EXPECTED).write_bytes(b"[" * 100_000)
    piped = shutil.copytree(a_case, folder / "piped")
    (piped / cases.EXPECTED).unlink()
    os.mkfifo(piped / cases.EXPECTED)  # `scandir` calls it no plain file: provenance.md makes it a case
    (folder / "unreadable").mkdir(mode=0)
    before = sorted(str(path) for path in tmp_path.rglob("*"))

    done = autopsy(folder, "--junit", tmp_path / "out.xml")

    assert done.returncode == 7
    assert done.stdout.splitlines()[-1] == "1 passed, 5 failed"
    assert "passed   cases/one" in done.stdout
    assert "\x1b" not in done.stdout
    assert b'errors="5"' in (tmp_path / "out.xml").read_bytes()
    (tmp_path / "out.xml").unlink()
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_evidence_that_lies_about_itself_is_no_exception(a_case: Path) -> None:
    bundle = next(a_case.glob("*.tar.zst"))
    damaged = {name: data[: len(data) // 2] + b"\xff{[" for name, data in stored.files(bundle).items()}
    del damaged[layout.MANIFEST]
    resealed(bundle, a_case / "damaged.tar.zst", damaged)
    bundle.unlink()
    replayed = all_of(a_case)["one"]
    assert replayed.error == ""
    assert {change.what for change in replayed.changes} >= {"confidence"}


def test_junit_holds_what_xml_can_and_makes_the_rest_visible() -> None:
    told = (
        Replayed(name="a/right", seconds=0.25),
        Replayed(name="a/ch\x00anged]]>", seconds=0.5, changes=(expected.Change("where", "throttle", "<&\x1b\ud800"),)),
        Replayed(name="broken", seconds=1.0, error="out\x08 of luck\nsecond line"),
    )
    root = ET.fromstring(junit.junit(told))  # noqa: S314 - we have just written it
    (suite,) = root
    assert {key: suite.get(key) for key in ("tests", "failures", "errors", "time")} == {
        "tests": "3",
        "failures": "1",
        "errors": "1",
        "time": "1.750",
    }
    assert [case.get("name") for case in suite] == ["right", "ch\\u0000anged]]>", "broken"]
    assert suite[0].get("classname") == "a"
    assert suite[1][0].get("message") == "where: throttle → <&\\u001b\\ud800"
    assert suite[2][0].tag == "error"
    assert suite[2][0].get("message") == "out\\u0008 of luck"


def test_a_summary_counts_a_case_without_a_verdict_as_failed() -> None:
    told = (Replayed(name="a", seconds=0), Replayed(name="b", seconds=0, error="damaged"))
    assert words.summary(told) == "1 passed, 1 failed"


def test_a_piece_that_hangs_dies_or_eats_memory_costs_only_itself() -> None:
    def work(index: int) -> bytes:
        match index:
            case 1:
                time.sleep(60)
            case 2:
                os._exit(9)  # it may send no signal
            case 3:
                return bytes(1 << 30)
            case 4:
                raise LookupError("\udcff")
            case 5:
                with open("/dev/shm/never", "xb") as stream:  # noqa: S108 - it must not come about
                    stream.write(b"evidence")
        return str(index).encode()

    done = {each.index: each for each in work_through(8, work, jobs=2, seconds=2.0, memory=200 << 20)}

    Path("/dev/shm/never").unlink(missing_ok=True)  # noqa: S108 - an empty file is what the limit leaves
    assert sorted(done) == list(range(8))
    assert {index: done[index].answer for index in (0, 6, 7)} == {0: b"0", 6: b"6", 7: b"7"}
    assert "given up" in done[1].error
    assert "ended without an answer" in done[2].error
    assert "memory" in done[3].error
    assert done[4].error.startswith("LookupError")
    assert "PermissionError" in done[5].error


def test_no_worker_outlives_its_work() -> None:
    before = children()
    work = work_through(100, lambda _: str(os.getpid()).encode(), jobs=3)
    assert isinstance(next(work), Done)
    work.close()
    assert children() == before


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def resealed(bundle: Path, destination: Path, changed: dict[str, bytes], *, schema: int = SCHEMA) -> None:
    """Seal a bundle anew with some files changed or added."""
    folder = destination.parent / f".{destination.name}.work"
    for name, data in {**stored.files(bundle), **changed}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    manifest = msgspec.structs.replace(open_bundle(bundle).manifest, files=())
    if schema > SCHEMA:
        pack(destination, {layout.MANIFEST: encode_manifest(msgspec.structs.replace(manifest, schema=schema))})
    else:
        seal(folder, destination, manifest)
    shutil.rmtree(folder)


def pack(destination: Path, files: dict[str, bytes]) -> None:
    """Write a .tar.zst that `seal` would not."""
    plain = BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, BytesIO(data))
    destination.write_bytes(zstandard.ZstdCompressor().compress(plain.getvalue()))


def bomb(destination: Path) -> None:
    """Write a small archive of a file that is far larger than evidence can be."""
    entry = tarfile.TarInfo("evidence/host/host.txt")
    entry.size = 300 << 20
    with (
        open(destination, "wb") as file,
        zstandard.ZstdCompressor().stream_writer(file) as packed,
    ):
        packed.write(entry.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(300):
            packed.write(bytes(1 << 20))
