"""Exposes real processes as the plan does, and looks at what is left of it."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from autopsy.bundle import layout
from autopsy.bundle.records import FreezeRecord, FrozenThread
from autopsy.capture import second_exposure
from autopsy.capture.freeze import step as freeze
from autopsy.capture.step import Collected, Options, Outcome, Scene
from autopsy.drill.machine import Machine
from autopsy.examine.core.reader import Core
from autopsy.linux.mappings import Mapping, parse_maps
from support import lab, looking

GDB = ("gdb", "-nx", "-batch", "-iex", "set auto-load off", "-iex", "set debuginfod enabled off")
FAST = dataclasses.replace(Options(), max_stop=0.05, bpf=False)
HELD = {"stopped", "walked"}
walks = False  # whether threads may be walked where a test says nothing of it: see `both_ways`


@dataclasses.dataclass(frozen=True, slots=True)
class Taken:
    """One snapshot, read back."""

    outcome: Outcome
    record: FreezeRecord
    core: Core
    path: Path

    def thread(self, tid: int) -> FrozenThread:
        return next(each for each in self.record.threads if each.tid == tid)

    @property
    def how(self) -> set[str]:
        return {each.how for each in self.record.threads if "kernel" not in each.why}


def take(pid: int, place: Path, options: Options | None = None, *, second: bool = False) -> Taken:
    step = layout.SECOND_EXPOSURE if second else layout.FREEZE
    with looking.scene(pid, place, step) as plain:
        scene = dataclasses.replace(plain, options=options or dataclasses.replace(FAST, bpf=walks))
        outcome = expose_again(scene) if second else freeze.expose(scene)
        record = looking.decoded(scene, layout.FREEZE_RECORD, FreezeRecord)
        path = scene.folder / layout.CORE if second else place / layout.CORE
    assert isinstance(outcome, Collected), outcome
    return Taken(outcome, record, Core(path), path)


def expose_again(scene: Scene) -> Outcome:
    """Take the second snapshot into a file of its own."""
    with second_exposure.new_core(scene) as core:
        return freeze.expose_again(scene, core)


def statuses(pid: int) -> Iterator[dict[str, str]]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            yield dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line)


def untouched(pid: int, states: str = "RSDI") -> bool:
    """Return whether no thread is stopped or traced and no signal waits, as if we had never been there."""
    return all(
        status["State"][0] in states
        and status["TracerPid"] == "0"
        and not int(status["SigPnd"], 16)
        and not int(status["ShdPnd"], 16)
        for status in statuses(pid)
    )


@contextmanager
def workers_asleep(place: Path, options: Options | None = None) -> Iterator[tuple[Machine, Taken, set[int]]]:
    """Take a snapshot while workers sleep in a frozen file system; yield it once that is thawed, and who slept."""
    with lab.file_system() as storage:
        disk = lab.disk(storage.mount / "disk", mebibytes=8)
        with lab.qemu(
            "7.2",
            *("-blockdev", f"driver=file,filename={disk},node-name=f0,aio=threads"),
            *("-device", "virtio-blk-pci,drive=f0,id=vd0"),
        ) as running:
            with lab.frozen(storage):
                for number in range(4):
                    running.qemu_io(lab.of_device("vd0"), f"aio_write {number * 64}k 4k")
                lab.until("workers hang", lambda: list(lab.states(running.pid)).count("D") >= 1)
                asleep = {int(status["Pid"]) for status in statuses(running.pid) if status["State"][0] == "D"}
                taken = take(running.pid, place, options)
                assert untouched(running.pid)
            yield running, taken, asleep


def mappings(pid: int) -> tuple[Mapping, ...]:
    return parse_maps(Path(f"/proc/{pid}/maps").read_bytes())


def gdb(*arguments: str | Path) -> str:
    if shutil.which("gdb") is None:
        lab.missing("gdb is not here")
    return subprocess.run([*GDB, *arguments], capture_output=True, check=False, timeout=60).stdout.decode()


def frames(text: str) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for part in re.split(r"^Thread ", text, flags=re.MULTILINE)[1:]:
        head, _, rest = part.partition("\n")
        if lwp := re.search(r"LWP (\d+)", head):
            found[int(lwp[1])] = re.findall(r"^#\d+ +(?:0x([0-9a-f]+ in \S+)|\S+)", rest, flags=re.MULTILINE)
    return found


@contextmanager
def victim(tmp_path: Path, body: str) -> Iterator[int]:
    """Run Python that says "ready" and goes on; `body` may use `place`."""
    with looking.python(f"import os, signal, sys, threading, time\nplace = {str(tmp_path)!r}\n{body}") as pid:
        yield pid


@contextmanager
def quiet_vm() -> Iterator[Machine]:
    """Run a quiet VM with a few iothreads and an AIO ring."""
    with lab.folder() as folder:
        disk = lab.disk(folder / "disk")
        with lab.qemu(
            "7.2",
            *(word for number in range(4) for word in ("-object", f"iothread,id=io{number}")),
            *("-blockdev", f"driver=file,filename={disk},node-name=f0,aio=native,cache.direct=on"),
            *("-device", "virtio-blk-pci,drive=f0,id=vd0,iothread=io0", "-smp", "2"),
            accelerate=lab.KVM if lab.kvm_works() else lab.TCG,
        ) as running:
            yield running
