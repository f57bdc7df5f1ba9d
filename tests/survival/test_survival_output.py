"""Where the evidence goes while storage is stuck, full, read-only or failing: somewhere else, and it is told."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from autopsy.bundle import layout
from autopsy.bundle.verify import verify
from autopsy.capture.freeze.size_estimate import REST, Estimate, Needs, estimate, needs
from autopsy.capture.runner import run
from autopsy.capture.staging import places
from autopsy.capture.staging.staging import Staging, prepare
from autopsy.capture.step import Collected, Deadline, Impact, Outcome, Scene, Step
from autopsy.commands.sealing import put_beside
from autopsy.drill.machine import Machine
from autopsy.target.qemu_processes import tell
from support import lab
from support.surviving import (
    Capture,
    assert_unharmed,
    at_leisure,
    capture,
    namespace,
)
from tests.capture.test_runner import around

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def vm() -> Iterator[Machine]:
    with at_leisure() as machine:
        yield machine


SMALL = Needs(work=8 << 20, bundle=2 << 20)


@contextmanager
def tmpfs(at: Path, *options: str) -> Iterator[Path]:
    lab.need_root()
    at.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", at], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", at], check=True)


@contextmanager
def sparse(place: Path, room: str = "120m") -> Iterator[tuple[Path, Path]]:
    """Mount an ext4 whose device can be made to fail: its image is on a tmpfs that can be filled. Thawed always."""
    with tmpfs(place / "below", f"size={room}") as below:
        image = below / "image"
        with image.open("wb") as stream:
            stream.truncate(256 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", image], check=True)
        mount = place / "mount"
        mount.mkdir()
        subprocess.run(["mount", "-o", "loop", image, mount], check=True)
        try:
            yield mount, below
        finally:
            subprocess.run(["fsfreeze", "--unfreeze", mount], check=False, capture_output=True)
            lab.until("it is unmounted", lambda: not subprocess.run(["umount", mount], check=False).returncode)


PLACES = {"tmp": "/var/tmp", "cache": "/var/cache", "lib": "/var/lib", "run": "/run"}  # noqa: S108 - of a mount namespace of our own


def stuck_below(mount: Path, *which: str) -> tuple[str, ...]:
    """Return the commands that lay folders of a file system over places of the host; it is at /mnt itself."""
    return (f"mount --bind {mount} /mnt", *(f"mount --bind /mnt/{name} {PLACES[name]}" for name in which))


def fill(folder: Path, leave: int = 0) -> Path:
    """Write a file until the file system is full, but for so many bytes."""
    ballast = folder / "ballast"
    with open(ballast, "ab", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(b"x" * (64 << 10))
    os.truncate(ballast, max(0, ballast.stat().st_size - leave))
    return ballast


def remounted_read_only(mount: Path) -> bool:
    return subprocess.run(["mount", "-o", "remount,ro", mount], check=False, capture_output=True).returncode == 0


def gone_elsewhere(done: Capture, elsewhere: Path, *, seen: Path | None = None) -> Path:
    """Assert that the bundle is whole, in `elsewhere` (seen from here as `seen`), and that the answer says so."""
    assert done.bundle.parent == elsewhere, done.story
    assert done.answer["verdict"]["where"] == "none"
    bundle = (seen or elsewhere) / done.bundle.name
    assert verify(bundle).files
    assert any(str(elsewhere) in note for note in done.answer["notes"]), done.answer["notes"]
    return bundle


@pytest.fixture
def steps() -> tuple[Step, ...]:
    def collect(scene: Scene) -> Outcome:
        scene.write("x", os.urandom(1 << 20))
        return Collected()

    return (Step("one", Impact.NONE, 5, collect), Step("two", Impact.NONE, 5, collect))


def staged(name: str, *wanted: Path, needs: Needs = SMALL) -> Staging:
    made = prepare(f"autopsy-{name}-{os.getpid()}", wanted, Estimate(needs))
    made.claim(b"read me\n")
    return made


def test_a_frozen_file_system_is_passed_over_and_our_process_in_it_is_named(tmp_path: Path) -> None:
    with lab.file_system() as stuck, lab.frozen(stuck):
        made = staged("frozen", stuck.mount, tmp_path)
        assert made.places == [tmp_path]
        assert "no answer" in made.notes[0]
        assert "sleeps in" in made.notes[0]
        made.clear()


@pytest.mark.parametrize(("options", "words"), [(("size=1m",), "has room for"), (("ro",), "Read-only file system")])
def test_a_place_that_cannot_hold_the_bundle_is_known_before_anything_is_taken(
    tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    with tmpfs(tmp_path / "bad", *options) as bad:
        made = staged("bad", bad, tmp_path)
        assert made.places == [tmp_path]
        assert words in made.notes[0]
        assert list(bad.iterdir()) == []
        made.clear()


def test_a_disk_too_small_for_the_copy_still_gets_the_bundle(tmp_path: Path, steps: tuple[Step, ...]) -> None:
    with lab.file_system() as mounted:
        small = mounted.mount
        made = staged("small", small, tmp_path, needs=Needs(work=shutil.disk_usage(small).free, bundle=2 << 20))
        assert made.tight == {small}
        run(steps, around(made))
        assert made.places[0] == small
        assert made.durable.parent == tmp_path
        made.clear()
        assert [path.name for path in small.iterdir()] == ["lost+found"]


def test_what_lies_in_memory_is_not_copied_to_memory_again(steps: tuple[Step, ...]) -> None:
    memory = places.memory_places()
    made = staged("memory", memory[-1])
    run(steps, around(made))
    assert made.durable == made.work
    lies = [path for place in memory for path in place.iterdir() if path.name.startswith(made.name)]
    assert lies == [made.work]
    made.clear()


def test_a_capture_s_needs_count_qemu_s_own_memory_and_not_the_guest_s(vm: Machine) -> None:
    told = needs(vm.pid, tell([vm.pid])[vm.pid].ram_sizes)
    assert 8 << 20 < told.work - REST < 200 << 20
    assert told.bundle < told.work


def test_the_memory_map_is_gone_through_for_the_room_only_where_the_most_does_not_fit(vm: Machine) -> None:
    measured = []

    def measure() -> Needs:
        measured.append(1)
        return SMALL

    most = estimate(vm.pid, tell([vm.pid])[vm.pid].ram_sizes).most
    told = Estimate(most, measure)
    assert told.within(most.work + most.bundle) == most
    assert not measured
    assert told.within(most.work) == told.within(1 << 40) == SMALL
    assert measured == [1]


def test_with_every_disk_stuck_memory_takes_the_bundle(vm: Machine) -> None:
    """Output, /var/lib, /var/tmp, HOME, TMPDIR and the places of caches are frozen: only tmpfs is left."""
    with lab.file_system() as stuck:
        for name in ("out", "tmp", "home", "cache", "lib", "run"):
            (stuck.mount / name).mkdir()
        with namespace(*stuck_below(stuck.mount, "cache", "tmp", "lib", "run")) as memory:
            environment = {"HOME": "/mnt/home", "TMPDIR": "/mnt/tmp", "XDG_CACHE_HOME": "/mnt/home/.cache"}
            with lab.frozen(stuck):
                done = capture(vm.pid, "/mnt/out", "--fast", "--budget", "30", within=memory, environment=environment)
                assert done.end() == 0, done.story
                assert done.seconds < 35
                gone_elsewhere(done, Path("/dev/shm"), seen=memory.memory).unlink()  # noqa: S108 - the namespace's
                assert done.outcomes()["gdb.threads"] == "Collected"
                assert memory.works() == []
    assert_unharmed(vm)


def test_storage_that_gets_stuck_in_the_middle_costs_no_evidence(vm: Machine, tmp_path: Path) -> None:
    with sparse(tmp_path) as (stuck, _):
        done = capture(vm.pid, stuck, "--gap", "4", "--out", str(tmp_path))
        lab.until("the first step is durable", lambda: bool(list(stuck.glob("*.partial/evidence/witness/*"))))
        subprocess.run(["fsfreeze", "--freeze", stuck], check=True)
        assert done.end() == 0, done.story
    gone_elsewhere(done, tmp_path)
    assert all(outcome == "Collected" for outcome in done.outcomes().values())
    assert not list(tmp_path.glob("*.partial"))


def has_frozen(capture: Capture) -> bool:
    """Return whether the working folder, which the capture holds open, has a core in it."""
    for descriptor in Path(f"/proc/{capture.process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            work = descriptor.readlink()
            if work.suffix == layout.WORK and (work / layout.CORE).exists():
                return True
    return False


def test_a_disk_that_fills_up_meanwhile_is_left_as_it_was_found(vm: Machine, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "size=90m") as small:
        done = capture(vm.pid, small, "--gap", "3", "--out", str(tmp_path))
        lab.until("it has frozen the VM", partial(has_frozen, done))
        fill(small, 64 << 10)
        assert done.end() == 0, done.story
        # What it had copied there is removed, and makes room: then the bundle may fit in after all.
        home = done.bundle.parent
        assert home in {small, tmp_path}
        assert verify(done.bundle).files
        assert str(small) in done.story
        report, told = done.answer["report"], "the report is in the bundle alone"  # it comes last, and may find no room
        assert report or any(told in note for note in done.answer["notes"])
        ours = {Path(path).name for path in (done.bundle, report) if path} if home == small else set()
        assert {path.name for path in small.iterdir()} == {"ballast"} | ours


def test_a_report_that_finds_no_room_beside_its_bundle_is_told(tmp_path: Path) -> None:
    notes: list[str] = []
    with tmpfs(tmp_path / "small", "size=64k") as small:
        assert put_beside(b"x" * (1 << 20), small / "autopsy-busy.html").placed(Deadline(5), notes) is None
        assert list(small.iterdir()) == []
    (note,) = notes
    assert note.startswith(f"the report is in the bundle alone: {small / 'autopsy-busy.html'}: ")
    assert note.endswith("No space left on device")


def test_a_disk_that_fails_in_the_middle_is_given_up(vm: Machine, tmp_path: Path) -> None:
    """The daemon that serves the disk is killed: every I/O is an error from then on."""
    with lab.folder() as place:
        image = lab.disk(place / "image", mebibytes=160)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", image], check=True)
        with lab.fuse(image) as served:
            mount = place / "mount"
            mount.mkdir()
            subprocess.run(["mount", "-o", "loop", served.file, mount], check=True)
            try:
                done = capture(vm.pid, mount, "--gap", "3", "--out", str(tmp_path))
                lab.until("the capture is under way", lambda: bool(list(mount.glob("*.partial/evidence/witness/*"))))
                served.process.send(signal.SIGKILL)
                assert done.end() == 0, done.story
                gone_elsewhere(done, tmp_path)
                assert any("Input/output error" in note for note in done.answer["notes"]), done.answer["notes"]
            finally:
                lab.until("it is unmounted", lambda: not subprocess.run(["umount", mount], check=False).returncode)
    assert_unharmed(vm)


def test_with_no_place_at_all_nothing_is_killed_and_the_exit_code_is_5(vm: Machine) -> None:
    with lab.file_system() as stuck:
        for name in ("out", "tmp", "lib", "run"):
            (stuck.mount / name).mkdir()
        with (
            namespace(*stuck_below(stuck.mount, "run", "lib", "tmp"), memory="64k") as memory,
            lab.frozen(stuck),
        ):
            done = capture(vm.pid, "/mnt/out", "--fast", "--then-kill", "--even-if-healthy", within=memory)
            assert done.end() == 5, done.story
    assert_unharmed(vm)


def test_the_seal_fails_only_and_nothing_is_killed(vm: Machine, tmp_path: Path) -> None:
    """Every place was good when it began; when the bundle is to be packed, memory is full and the disk read-only."""
    with sparse(tmp_path, "500m") as (out, _):
        for name in ("tmp", "lib", "run"):
            (out / name).mkdir()
        with namespace(*stuck_below(out, "tmp", "lib", "run"), memory="192m") as memory:
            done = capture(vm.pid, out, "--gap", "8", "--then-kill", "--even-if-healthy", within=memory)
            lab.until("the capture is under way", lambda: bool(list(memory.works())) and bool(list(out.iterdir())))
            fill(out)
            lab.until("the second snapshot waits", lambda: bool(list(memory.memory.glob("*.work/evidence/host/*"))))
            fill(memory.memory, 256 << 10)
            # To fill it would leave a race: what is cleared there makes room again.
            lab.until("nobody writes there any more", partial(remounted_read_only, out))
            assert done.end() == 5, done.story
            (left,) = memory.works()
            assert str(left.name) in done.story
            (memory.memory / "ballast").unlink()
            sealed = subprocess.run(
                memory.words(sys.executable, "-m", "autopsy", "seal", f"/dev/shm/{left.name}"),  # noqa: S108 - tmpfs, where a killed capture works
                env={"PYTHONPATH": str(lab.HOUSE)},
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            assert sealed.returncode == 0, sealed.stderr
    assert_unharmed(vm)
