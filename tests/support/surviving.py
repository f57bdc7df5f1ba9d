"""Captures that are hurt on purpose: a busy VM, a mount namespace of its own, and what must hold afterwards."""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from autopsy.bundle.reader import open_bundle
from autopsy.bundle.verify import verify
from autopsy.capture.staging.leftovers import at_work
from autopsy.commands.seal import seal_leftover
from autopsy.diagnose.verdict import diagnose
from autopsy.drill.guests import WRITE_FOR_EVER
from autopsy.drill.machine import Machine, ask
from autopsy.drill.process import states
from autopsy.facts.gather import gather_facts
from support import lab
from support.wedged.small_guests import ENOUGH, WRITE_NOW_AND_THEN, boot_sector

HOUSE = lab.HOUSE
PR_SET_CHILD_SUBREAPER = 36
WHOLE_SECONDS = 60.0
BEGUN: list[Capture] = []
libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Namespace:
    """A mount namespace in which /dev/shm is our own: what a capture leaves in memory is ours to look at."""

    pid: int

    @property
    def root(self) -> Path:
        return Path(f"/proc/{self.pid}/root")

    @property
    def memory(self) -> Path:
        return self.root / "dev/shm"

    def run(self, *words: str | Path) -> None:
        subprocess.run(self.words(*words), check=True, capture_output=True, timeout=30)

    def words(self, *words: str | Path) -> list[str]:
        return ["nsenter", "-t", str(self.pid), "-m", "--", *map(str, words)]

    def works(self) -> list[Path]:
        return sorted(self.memory.glob("*.work"))


@contextmanager
def namespace(*setup: str, memory: str = "256m") -> Iterator[Namespace]:
    """Run the shell commands of `setup` in a new mount namespace, with an empty /dev/shm, and no other memory.

    Where /run is memory, as systemd makes it, it is an empty folder of the disk; else it is as it was.
    """
    lab.need_root()
    with lab.folder() as place:
        yield from _namespace(place, setup, memory)


def _namespace(place: Path, setup: tuple[str, ...], memory: str) -> Iterator[Namespace]:
    on_disk = f"if mountpoint -q /run; then mount --bind {place} /run; fi"
    lines = [
        on_disk,
        f"mount -t tmpfs -o mode=1777,size={memory} tmpfs /dev/shm",
        *setup,
        "echo ready",
        "exec sleep infinity",
    ]
    script = "set -e; " + "; ".join(lines)
    holder = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        yield Namespace(holder.pid)
    finally:
        holder.kill()
        holder.wait()
        if holder.stdout:
            holder.stdout.close()


@contextmanager
def busy(name: str = "busy", code: bytes = WRITE_FOR_EVER) -> Iterator[Machine]:
    """Run a VM whose guest writes as fast as it can."""
    with lab.folder() as place:
        image = boot_sector(lab.disk(place / "disk.raw"), code)
        with lab.qemu(
            "7.2",
            *("-drive", f"if=none,id=disk0,format=raw,file={image}"),
            *("-device", "virtio-blk-pci,id=vd0,drive=disk0"),
            name=name,
            boots=True,
        ) as machine:
            lab.until("the guest writes", lambda: lab.writes_done(machine, "vd0") > ENOUGH)
            yield machine


def at_leisure(name: str = "busy") -> AbstractContextManager[Machine]:
    """Run a VM whose guest writes now and then: for tests in which it is not the VM that is hurt."""
    return busy(name, WRITE_NOW_AND_THEN)


@dataclass(slots=True)
class Capture:
    """One `autopsy capture` in a process of its own."""

    process: subprocess.Popen[str]
    out: str = ""
    story: str = ""
    seconds: float = 0.0
    began: float = field(default_factory=time.monotonic)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, within: float = WHOLE_SECONDS) -> int:
        """Wait for it and return its exit code; one that does not end in time is killed, and the test fails."""
        try:
            self.out, self.story = self.process.communicate(timeout=within)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.out, self.story = self.process.communicate(timeout=10)
            pytest.fail(f"the capture has not ended within {within} s:\n{self.story}")
        self.seconds = time.monotonic() - self.began
        return self.process.returncode

    @property
    def answer(self) -> dict[str, Any]:
        assert self.out.strip(), self.story
        return dict(json.loads(self.out))

    @property
    def bundle(self) -> Path:
        return Path(self.answer["bundle"])

    def outcomes(self) -> dict[str, str]:
        return {step["name"]: step["outcome"] for step in self.answer["steps"]}


def capture(
    target: int | str,
    out: Path | str | None,
    *options: str,
    within: Namespace | None = None,
    environment: dict[str, str] | None = None,
    before: tuple[str, ...] = (),
    folder: Path | None = None,
    heard: Callable[[], None] | None = None,
) -> Capture:
    """Begin a capture, in a mount namespace if one is given; `before` are words in front of the command line."""
    words = [*before, sys.executable, "-m", "autopsy", "capture"]
    words += [f"pid:{target}" if isinstance(target, int) else target, "--json"]
    words += [] if out is None else ["--out", str(out)]
    words += options
    begun = Capture(
        subprocess.Popen(
            within.words(*words) if within else words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder or "/",
            env={**os.environ, "PYTHONPATH": str(HOUSE), **(environment or {})},
            start_new_session=True,
            preexec_fn=heard or deaf_to_nothing,  # noqa: PLW1509 - it only sets signals
        )
    )
    BEGUN.append(begun)
    return begun


@pytest.fixture(autouse=True)
def _every_capture_ends() -> Iterator[None]:
    """End what a failed test left running. A module that imports this has it."""
    yield
    while BEGUN:
        process = BEGUN.pop().process
        with process:
            process.kill()


def deaf_to_nothing() -> None:
    """Hear every signal, whatever whoever started the tests has us ignore."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def orphans_come_to_us() -> Iterator[None]:
    """Become the parent of every process whose own parent dies below us, so that none goes unseen."""
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def children() -> dict[int, str]:
    """Return our children that are not zombies, with their names; zombies that nobody waits for are reaped."""
    found = {}
    for each in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, rest = each.read_text(errors="replace").rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, parent = rest.split()[:2]
        if int(parent) == os.getpid() and state not in "ZX":
            found[int(each.parent.name)] = head.partition("(")[2]
    return found


def reap(known: set[int]) -> None:
    """Wait for the zombies among our children but those that somebody else waits for."""
    for each in Path("/proc").glob("[0-9]*/stat"):
        try:
            rest = each.read_text(errors="replace").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if rest[0] == "Z" and int(rest[1]) == os.getpid() and int(each.parent.name) not in known:
            os.waitpid(int(each.parent.name), os.WNOHANG)


KICK = 1 << signal.SIGUSR1 - 1  # QEMU's own, to a vCPU; on a busy host it is often seen pending


def is_untouched(pid: int) -> list[str]:
    """Return what is not as it was with a process that was captured, empty where all is well.

    A pending signal that the process ignores does nothing: SIGPIPE in the monitor's thread, which blocks all signals,
    is what QEMU gets for writing to a client that was killed.
    """
    wrong = []
    if bad := states(pid) & {"t", "T"}:
        wrong.append(f"threads in {bad}")
    for each in Path(f"/proc/{pid}/task").glob("*/status"):
        try:
            status = dict(line.split(":", 1) for line in each.read_text().splitlines() if ":" in line)
        except (FileNotFoundError, ProcessLookupError):
            continue
        wrong += [
            f"{name} of {each.parent.name} is {status[name].strip()}"
            for name in ("SigPnd", "ShdPnd")
            if int(status[name], 16) & ~int(status["SigIgn"], 16) & ~(KICK if name == "SigPnd" else 0)
        ]
        wrong += [f"{each.parent.name} is traced by {tracer}"] if (tracer := int(status["TracerPid"])) else []
    return wrong


@contextmanager
def explained(wrong: Callable[[], object]) -> Iterator[None]:
    """Say with a failure what is wrong at that moment."""
    try:
        yield
    except pytest.fail.Exception as failure:
        pytest.fail(f"{failure}: {wrong()}")


def assert_unharmed(machine: Machine, *, before: int | None = None) -> None:
    """Fail unless every thread runs as it did, our monitor answers the next client, and the guest goes on."""
    with explained(lambda: is_untouched(machine.pid)):
        lab.until("the VM's threads are as they were", lambda: not is_untouched(machine.pid), seconds=10)
    answer = ask(machine.monitor, "query-status", {}, within=10)
    assert answer["status"] == "running"
    done = lab.writes_done(machine, "vd0") if before is None else before
    lab.until("the guest writes on", lambda: lab.writes_done(machine, "vd0") > done)


def assert_no_orphan(known: set[int], *, seconds: float = 3.0) -> None:
    """Fail where a process of the capture's is left."""
    with explained(lambda: [each for each in children().items() if each[0] not in known]):
        lab.until("no process is left", lambda: not (set(children()) - known), seconds=seconds)
    reap(known)


def assert_sealable(folder: Path, place: Path) -> None:
    """Fail unless a killed capture's folder opens, is diagnosed, and becomes a bundle that verifies."""
    if not (folder / "manifest.json").exists():  # killed before it had begun: cleared by a later capture
        shutil.rmtree(folder)
        return
    assert not at_work(folder)
    diagnose(gather_facts(open_bundle(folder)))
    place.mkdir(exist_ok=True)
    sealed = seal_leftover(folder, place)
    assert verify(sealed.path).manifest.schema
    assert not folder.exists()
    sealed.path.unlink()


def token() -> str:
    return secrets.token_hex(16)
