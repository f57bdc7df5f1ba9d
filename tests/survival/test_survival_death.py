"""Our own death, at any moment and by any signal: the VM does not notice, and the evidence can be sealed."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from autopsy.bundle import layout
from autopsy.bundle.reader import open_bundle
from autopsy.bundle.seal import seal_in
from autopsy.bundle.verify import verify
from autopsy.capture.staging import staging
from autopsy.drill.machine import Machine
from support import lab
from support.surviving import (
    HOUSE,
    Namespace,
    assert_no_orphan,
    assert_sealable,
    assert_unharmed,
    busy,
    capture,
    children,
    namespace,
    orphans_come_to_us,
)
from tests.bundle.test_bundle import MANIFEST

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]

ENDINGS = {
    "SIGKILL": (signal.SIGKILL,),
    "SIGTERM": (signal.SIGTERM,),
    "SIGINT": (signal.SIGINT,),
    "SIGINT twice": (signal.SIGINT, signal.SIGINT),
    "SIGHUP": (signal.SIGHUP,),
}
SHORT = 10  # `make soak` takes a hundred
SECOND_PRESS_SECONDS = 1.0
SEAL_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Died:
    """One capture that was to be ended after so many seconds; `caught` if it had not ended by itself before."""

    ending: str
    after: float
    code: int
    left: int
    caught: bool


@pytest.fixture(scope="module")
def vm() -> Iterator[Machine]:
    with busy() as machine:
        yield machine


@pytest.fixture
def memory() -> Iterator[Namespace]:
    with namespace() as made:
        yield made


def die(machine: Machine, memory: Namespace, out: Path, ending: str, after: float) -> Died:
    """End one capture and assert everything that must hold then."""
    known = set(children())
    running = capture(machine.pid, out, "--fast", within=memory)
    with contextlib.suppress(subprocess.TimeoutExpired):
        running.process.wait(after)
    numbers = ENDINGS[ending]
    caught = running.process.poll() is None
    for place, number in enumerate(numbers):
        if place:
            time.sleep(0.3)  # pending signals of one number are one signal
        running.send(number)
    pressed = time.monotonic()
    code = running.end(SEAL_SECONDS)
    took = time.monotonic() - pressed
    assert len(numbers) == 1 or took < SECOND_PRESS_SECONDS, f"{took:.1f} s, exit code {code}:\n{running.story}"
    assert_no_orphan(known)
    assert_unharmed(machine)
    works = memory.works()
    for folder in [*works, *out.glob("[!.]*.partial")]:
        assert_sealable(folder, out / "sealed")
    assert not list(out.glob(".*")), "half a tarball is left beside what was sealed from its folder"
    if code == 0 or (code == 130 and running.out):
        assert verify(running.bundle).files
    for bundle in out.glob("*.tar.zst"):
        verify(bundle)
        bundle.unlink()
    return Died(ending, after, code, len(works), caught)


def deaths(machine: Machine, memory: Namespace, out: Path, times: int, seed: int) -> list[Died]:
    """End captures at moments spread over a whole one's length, each ending in turn."""
    chance = random.Random(seed)  # noqa: S311 - a test that can be repeated
    whole = capture(machine.pid, out, "--fast", within=memory)
    assert whole.end() == 0, whole.story
    endings = list(ENDINGS)
    moments = [(number + chance.random()) / times * whole.seconds * 0.95 for number in range(times)]
    chance.shuffle(moments)
    found = []
    for number, moment in enumerate(moments):
        after = moment
        while not (died := die(machine, memory, out, endings[number % len(endings)], after)).caught:
            after *= 0.6  # this one was quicker than the first
        found.append(died)
    return found


def test_whatever_ends_us_at_any_moment_leaves_the_vm_as_it_was(vm: Machine, memory: Namespace, tmp_path: Path) -> None:
    with orphans_come_to_us():
        died = deaths(vm, memory, tmp_path, SHORT, seed=7)
    assert len(died) == SHORT
    assert Counter(each.ending for each in died) == dict.fromkeys(ENDINGS, SHORT // len(ENDINGS))
    assert any(each.left for each in died), "no capture was caught at work"


def test_what_a_killed_capture_left_in_memory_is_sealed_by_the_next_one_where_it_was_to_go(
    vm: Machine, memory: Namespace, tmp_path: Path
) -> None:
    first = capture(vm.pid, tmp_path, "--gap", "30", within=memory)
    lab.until("it is at work", lambda: bool(list(memory.memory.glob("*.work/core"))), seconds=30)
    first.send(signal.SIGKILL)
    first.end()
    (left,) = memory.works()
    elsewhere = tmp_path / "elsewhere"
    second = capture(vm.pid, elsewhere, "--fast", within=memory)
    assert second.end() == 0, second.story
    assert memory.works() == []
    assert "killed capture" in second.story
    assert len(list(elsewhere.glob("*.tar.zst"))) == 1
    rescued = tmp_path / f"{layout.of_folder(left.name)}.tar.zst"
    assert "core" in open_bundle(rescued).names()
    assert not list(tmp_path.glob("*.partial"))


def test_two_captures_of_the_same_second_share_neither_folder_nor_bundle(tmp_path: Path) -> None:
    """The first one was killed, or its VM is called the same."""
    made = [staging.prepare("autopsy-vm-1", (tmp_path,)) for _ in range(2)]
    try:
        assert len({each.work for each in made} | {each.durable for each in made}) == 4
        for each in made:
            each.claim(b"read me")
        sealed = [seal_in(tmp_path, each.name, each.work, MANIFEST, frozenset()) for each in made]
        assert [each.path.name for each in sealed] == ["autopsy-vm-1.tar.zst", "autopsy-vm-1-2.tar.zst"]
    finally:
        for each in made:
            each.clear()


def test_a_capture_at_work_is_not_taken_for_a_dead_one(vm: Machine, memory: Namespace, tmp_path: Path) -> None:
    first = capture(vm.pid, tmp_path / "a", "--gap", "4", within=memory)
    lab.until("it is at work", lambda: bool(list(memory.memory.glob("*.work/core"))), seconds=30)
    (folder,) = memory.works()
    refused = subprocess.run(
        memory.words(sys.executable, "-m", "autopsy", "seal", f"/dev/shm/{folder.name}"),  # noqa: S108 - the namespace's
        env={"PYTHONPATH": str(HOUSE)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert refused.returncode == 2
    assert "still at work" in refused.stderr
    assert first.end() == 0, first.story


def test_seal_takes_the_fuller_folder_and_clears_both(vm: Machine, memory: Namespace, tmp_path: Path) -> None:
    killed = capture(vm.pid, tmp_path, "--gap", "30", within=memory)
    lab.until("something is durable", lambda: bool(list(tmp_path.glob("*.partial/evidence/freeze/*"))), seconds=30)
    killed.send(signal.SIGKILL)
    killed.end()
    (partial,) = tmp_path.glob("*.partial")
    done = subprocess.run(
        memory.words(sys.executable, "-m", "autopsy", "seal", partial),
        env={"PYTHONPATH": str(HOUSE)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert memory.works() == []
    assert not partial.exists()
    (bundle,) = tmp_path.glob("*.tar.zst")
    assert verify(bundle).files


def test_a_first_ctrl_c_seals_what_is_there_and_exits_with_130(vm: Machine, memory: Namespace, tmp_path: Path) -> None:
    running = capture(vm.pid, tmp_path, "--gap", "30", within=memory)
    lab.until("it is at work", lambda: bool(list(memory.memory.glob("*.work/core"))), seconds=30)
    running.send(signal.SIGINT)
    assert running.end(20) == 130
    assert "core" in open_bundle(running.bundle).names()
    assert_unharmed(vm)


def test_nohup_is_respected(vm: Machine, memory: Namespace, tmp_path: Path) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    running = capture(vm.pid, tmp_path, "--gap", "2", within=memory, heard=ignore)
    lab.until("it is at work", lambda: bool(list(memory.memory.glob("*.work/core"))), seconds=30)
    running.send(signal.SIGHUP)
    assert running.end() == 0, running.story
