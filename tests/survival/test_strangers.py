"""What another user of the host lays in our way is neither written through, nor believed, nor in the way."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from autopsy.bundle import seal as sealing
from autopsy.bundle.reader import open_bundle
from autopsy.bundle.verify import verify
from autopsy.capture.runner import run
from autopsy.capture.staging import places
from autopsy.capture.staging.staging import prepare
from autopsy.capture.step import Collected, Deadline, Impact, Outcome, Scene, Step
from autopsy.commands import examine as examining
from autopsy.commands import sealing as capturing
from autopsy.commands.seal import seal_leftover
from autopsy.commands.verify import verify_boxed
from autopsy.errors import DamagedBundle, ExitCode, NotStored, UsageError
from autopsy.files.scratch_place import scratch_place
from autopsy.report.render import killed, store
from autopsy.report.store import write_answers
from support import lab, strangers
from tests.bundle.test_bundle import MANIFEST, staged
from tests.capture.test_runner import around

ROUNDS = 50
SECRET = b"root's own\n"


@pytest.fixture
def precious(tmp_path: Path) -> Iterator[Path]:
    """Return a file of ours that must stay as it is."""
    file = tmp_path / "precious"
    file.write_bytes(SECRET)
    file.chmod(0o600)
    yield file
    assert file.read_bytes() == SECRET


def test_whoever_takes_our_folder_s_name_first_has_us_write_nothing_for_him(precious: Path) -> None:
    def collect(scene: Scene) -> Outcome:
        time.sleep(0.005)
        scene.write("cmdline", b"an attacker's line\n")
        return Collected()

    plan = (Step("witness", Impact.NONE, 5, collect),)
    with (
        strangers.everybodys() as place,
        strangers.at_once(lambda: strangers.lay_links(place, precious, ("evidence/witness/cmdline", "README.txt"))),
    ):
        for number in range(ROUNDS):
            made = prepare(f"autopsy-race{os.getpid()}-{number}", (place,))
            made.claim(b"read me\n")
            (record,) = run(plan, around(made))
            made.settled()
            assert record.outcome == "Collected", record.why
            assert not made.notes
            assert (made.durable / "evidence/witness/cmdline").read_bytes() == b"an attacker's line\n"
            assert made.durable.stat().st_uid == os.geteuid()
            assert made.durable.stat().st_mode & 0o077 == 0
            made.clear()
            assert precious.read_bytes() == SECRET, f"round {number}"


def test_a_folder_that_is_there_already_is_not_taken_for_ours(tmp_path: Path) -> None:
    with strangers.everybodys() as place:
        made = prepare(f"autopsy-taken-{os.getpid()}", (tmp_path,))
        theirs = made.durable.name
        strangers.does((place / theirs).mkdir)
        made.places.insert(0, place)
        run((Step("x", Impact.NONE, 5, _write),), around(made))
        made.settled()
        assert made.durable.parent == tmp_path
        assert list((place / theirs).iterdir()) == []
        assert any(str(place) in note for note in made.notes)
        made.clear()
        assert (place / theirs).exists()


def _write(scene: Scene) -> Outcome:
    scene.write("x", b"evidence")
    return Collected()


def test_names_that_a_stranger_took_keep_no_capture_from_beginning_or_ending() -> None:
    lab.need_root()
    (memory,) = places.memory_places()[-1:]
    name = f"autopsy-deny{os.getpid()}-20261129T000000Z"
    ends = ("", *(f"-{number}" for number in range(2, 10)))
    planted = [memory / f"{name}{end}.work" for end in ends]
    with strangers.everybodys() as place:
        bundles = [place / f"{name}{end}.tar.zst" for end in ends]

        def plant() -> None:
            for each in (*planted, *bundles):
                each.mkdir()

        strangers.does(plant)
        try:
            made = prepare(name, (place,))
            made.claim(b"read me\n")
            sealed = sealing.seal_in(place, made.name, made.work, MANIFEST, frozenset())
            assert sealed.path.name.startswith(name)
            assert verify(sealed.path).files == 1
            made.clear()
        finally:
            for each in planted:
                each.rmdir()


def test_a_report_is_not_written_through_a_link_that_lies_beside_the_bundle(precious: Path) -> None:
    with strangers.everybodys(0o777) as place:
        copy = place / "autopsy-vm-1.html"

        def plant() -> None:
            (place / f".{copy.name}.partial").symlink_to(precious)
            copy.symlink_to(precious)

        strangers.does(plant)
        assert capturing.put_beside(b"<html>", copy).placed(Deadline(5), []) == copy
        assert copy.read_bytes() == b"<html>"
        assert not copy.is_symlink()
        assert copy.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["report.html", "ours.html"])
def test_a_report_is_not_written_where_a_stranger_s_link_leads(name: str, precious: Path, tmp_path: Path) -> None:
    """In a folder with the sticky bit the kernel itself follows no such link; to find out first where it leads does."""
    with strangers.everybodys() as place:
        strangers.does(lambda: (place / "report.html").symlink_to(precious))
        (tmp_path / "ours.html").symlink_to(place / "report.html")
        store("<html>", (place if name == "report.html" else tmp_path) / name)
        assert not (place / "report.html").is_symlink()
        assert (place / "report.html").read_text() == "<html>"


def test_a_pipe_beside_a_bundle_is_not_waited_for_to_tell_of_a_kill(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar.zst.kill.json")
    assert killed(tmp_path / "a.tar.zst") == ""


def test_nothing_is_unpacked_where_somebody_else_could_swap_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with strangers.everybodys(0o777) as place:
        monkeypatch.setenv("TMPDIR", str(place))
        with pytest.raises(NotStored, match="no temporary folder"):
            scratch_place()
        place.chmod(0o1777)
        assert scratch_place() == str(place)
        os.chown(place, strangers.STRANGER, -1)
        with pytest.raises(NotStored):
            scratch_place()


def test_examining_a_folder_writes_through_none_of_its_links(tmp_path: Path, precious: Path) -> None:
    folder = staged(tmp_path / "autopsy-x")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "threads.json").write_bytes(SECRET)
    (folder / "diagnosis.json").symlink_to(precious)
    (folder / "report.html").symlink_to(precious)
    (folder / "evidence/gdb.threads").symlink_to(theirs)
    with examining._unpacked(folder) as copy:
        examining._write(copy, "gdb.threads", "threads.json", b"[]")
        write_answers(copy)
        assert (copy / "core").read_bytes() == (folder / "core").read_bytes()
        assert (copy / "evidence/gdb.threads/threads.json").read_bytes() == b"[]"
    assert (theirs / "threads.json").read_bytes() == SECRET


def test_what_a_stranger_planted_is_not_sealed_as_a_capture_s_own() -> None:
    with strangers.everybodys() as place:
        folder = place / "autopsy-web1-20261129T000000Z.partial"
        strangers.does(lambda: staged(folder))
        with pytest.raises(UsageError, match="user 61998 made it"):
            seal_leftover(folder, None)
        with pytest.raises(NotStored, match="user 61998 made it"):
            sealing.seal(folder, place / "a.tar.zst", MANIFEST)
        assert [each.name for each in place.iterdir()] == [folder.name]


def test_a_file_that_becomes_a_link_while_we_seal_is_not_followed(
    tmp_path: Path, precious: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = staged(tmp_path / "staging")
    victim = folder / "evidence/witness/tasks.txt"
    real = sealing._record

    def swapping(*words: object) -> object:
        if not victim.is_symlink():
            victim.unlink()
            victim.symlink_to(precious)
        return real(*words)  # type: ignore[arg-type]  # whatever it takes

    monkeypatch.setattr(sealing, "_record", swapping)
    sealed = sealing.seal(folder, tmp_path / "a.tar.zst", MANIFEST)
    assert SECRET not in open_bundle(sealed.path).files.values()


def test_what_the_owner_of_the_folder_swaps_before_it_is_read_back_is_not_taken_for_the_seal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sealing.private.rename_new

    def swapped(folder: int, old: str, name: str) -> None:
        real(folder, old, name)
        os.rename(name, f"{name}.away", src_dir_fd=folder, dst_dir_fd=folder)
        (tmp_path / name).write_bytes(b"a stranger's")

    monkeypatch.setattr(sealing.private, "rename_new", swapped)
    with pytest.raises(NotStored, match="has laid something else there"):
        sealing.seal(staged(tmp_path / "staging"), tmp_path / "a.tar.zst", MANIFEST)


def test_a_pipe_or_a_device_in_a_bundle_s_place_is_neither_waited_for_nor_opened(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.tar.zst"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/null")):
        with pytest.raises(DamagedBundle, match="is no plain file"):
            open_bundle(path)
        with pytest.raises(DamagedBundle, match="is no plain file"):
            verify_boxed(path)


def test_a_store_that_somebody_else_made_is_told_of_and_not_used() -> None:
    with strangers.everybodys() as place:
        store = place / "autopsy"
        strangers.does(store.mkdir)
        done = subprocess.run(
            [sys.executable, "-m", "autopsy", "list"],
            capture_output=True,
            text=True,
            check=False,
            cwd=lab.HOUSE,
            env={**os.environ, "STATE_DIRECTORY": str(store)},
        )
    assert done.returncode == ExitCode.NOT_PERMITTED, done.stderr
    assert f"{store}: user {strangers.STRANGER} made it" in done.stderr


def test_a_place_that_nobody_named_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "var/tmp"
    monkeypatch.setattr(places, "FALLBACKS", (gone,), raising=False)
    monkeypatch.setattr(places, "fallbacks", lambda: (gone,), raising=False)
    with pytest.raises(NotStored):
        prepare("autopsy-x", (Path("/proc/nowhere"),))
    assert not (tmp_path / "var").exists()


def test_where_everybody_writes_the_fallback_is_a_folder_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    with strangers.everybodys() as place:
        monkeypatch.setattr(places, "EVERYBODYS", place)
        monkeypatch.setattr(places, "fallbacks", lambda: (place,))
        made = prepare(f"autopsy-fall-{os.getpid()}", (Path("/proc/nowhere"),))
        (ours,) = place.iterdir()
        assert made.places == [ours]
        assert ours.stat().st_mode & 0o777 == 0o700
        made.clear()
        assert list(place.iterdir()) == []


def test_what_we_make_is_closed_to_others_from_the_start() -> None:
    words = "import atexit, os, sys; sys.argv = ['autopsy', '--version']\nfrom autopsy.cli.app import main\n"
    words += "atexit.register(lambda: print(oct(os.umask(0))))\nmain()"
    told = subprocess.run(
        [sys.executable, "-c", words], capture_output=True, text=True, check=True, cwd=lab.HOUSE, umask=0o022
    )
    assert told.stdout.split()[-1] == "0o77"


@pytest.mark.live
@pytest.mark.timeout(300)
def test_a_whole_capture_in_everybody_s_folder_gives_its_files_to_nobody(precious: Path) -> None:
    """A stranger takes the folders' and the report's names as fast as he can see or foresee them."""
    with lab.qemu("7.2", name="race") as machine, strangers.everybodys(0o777) as place:

        def plant() -> None:
            now = dt.datetime.now(dt.UTC)
            for seconds in range(60):
                moment = now + dt.timedelta(seconds=seconds)
                (place / f".autopsy-race-{moment:%Y%m%dT%H%M%SZ}.html.partial").symlink_to(precious)
            files = ("README.txt", "core", "evidence/witness/cmdline", "evidence/freeze/freeze.json")
            strangers.lay_links(place, precious, files)

        with strangers.at_once(plant):
            done = subprocess.run(
                [sys.executable, "-m", "autopsy", "capture", f"pid:{machine.pid}", "--fast", "--out", str(place)],
                capture_output=True,
                text=True,
                check=False,
                cwd=lab.HOUSE,
            )
        assert done.returncode == 0, done.stderr
        (bundle,) = place.glob("*.tar.zst")
        assert verify(bundle).files
        assert bundle.with_name(bundle.name.replace(".tar.zst", ".html")).stat().st_mode & 0o777 == 0o600
