"""What looks like a stall and is none, several VMs at once, and a store without room: on real VMs, for the soak."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from autopsy.drill import guests, storage
from autopsy.drill.process import tool
from autopsy.watch.discovery import Discovery
from autopsy.watch.launch import CaptureLauncher
from autopsy.watch.loop import Watch
from autopsy.watch.model import StallKind, Suppression, WatchState
from support import lab
from support.limited import io_limited
from support.watching.noticing import rounds, watching
from support.wedged import wedges_disks
from support.wedged.wedges import in_flight

pytestmark = [pytest.mark.live, pytest.mark.soak]

DISK = ("-device", "virtio-blk-pci,id=vd0,drive=disk0")
# Reads each thread's state as often as it can, and says how often, and which it saw that no running thread has.
STOPWATCH = """
import os, sys, time
pid, end, looks, seen = int(sys.argv[1]), time.monotonic() + float(sys.argv[2]), 0, set()
files = [open(f"/proc/{pid}/task/{tid}/stat", "rb", buffering=0) for tid in os.listdir(f"/proc/{pid}/task")]
while time.monotonic() < end:
    for file in files:
        try:
            file.seek(0)
            seen |= set(file.read(200).rpartition(b") ")[2][:1].decode()) & set("tT")
        except ProcessLookupError:
            pass
    looks += 1
print(looks, "".join(sorted(seen)))
"""


@contextmanager
def writing(build: lab.Build, place: Path) -> Iterator[lab.Machine]:
    """Run a guest that writes to its disk for ever."""
    image = storage.disk(place)
    guests.write_boot_sector(image)
    drive = f"if=none,id=disk0,format=raw,file={image},throttling.iops-total=40"
    with lab.qemu(build, "-drive", drive, *DISK, boots=True) as vm:
        yield vm


@contextmanager
def given_no_processor(pid: int) -> Iterator[None]:
    """Give a process a thousandth of a processor, by a control group."""
    lab.need_root()
    root = Path("/sys/fs/cgroup/cpu")
    if not (root / "cgroup.procs").exists():
        lab.missing("needs the cpu controller of control groups, version 1")
    group = root / f"autopsy-{secrets.token_hex(4)}"
    group.mkdir()
    try:
        (group / "cpu.cfs_period_us").write_text("1000000")
        (group / "cpu.cfs_quota_us").write_text("1000")
        (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        (group / "cpu.cfs_quota_us").write_text("-1")
        (root / "cgroup.procs").write_text(str(pid))
        lab.until("the cgroup is empty", lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


def test_what_saves_its_state_is_debugged_or_is_given_no_processor_does_not_stall(
    build: lab.Build, short: Path
) -> None:
    noise = short / "noise"
    noise.write_bytes(os.urandom(24 << 20))
    subprocess.run([tool("qemu-img"), "create", "-q", "-f", "qcow2", short / "s.qcow2", "1G"], check=True)
    image = short / "s.qcow2"
    slow = ("-drive", f"if=none,id=disk0,format=qcow2,file={image},cache=none", *DISK)
    memory = f"loader,file={noise},addr=0x1000000,force-raw=on"
    with ExitStack() as vms:
        saving = vms.enter_context(lab.qemu(build, *slow, "-device", memory))
        vms.enter_context(io_limited(saving.pid, image, 1_500_000))  # QEMU's own limits do not hold while it drains
        debugged, starved = (vms.enter_context(writing(build, short / name)) for name in ("d", "s"))
        lab.until("the guests write", lambda: min(lab.writes_done(vm, "vd0") for vm in (debugged, starved)) > 9)
        machines = {"saving": saving, "debugged": debugged, "starved": starved}
        seen: dict[str, set[WatchState]] = {name: set() for name in machines}
        with watching(*(each.pid for each in machines.values())) as watch:
            watch.round()
            hold = ["gdb", "-nx", "-batch", "-p", str(debugged.pid), "-ex", "shell sleep 16"]
            gdb = subprocess.Popen(hold, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            vms.callback(gdb.wait)
            vms.enter_context(given_no_processor(starved.pid))
            took: list[float] = []
            save = threading.Thread(target=lambda: took.append(_save(saving)))
            save.start()
            for told in rounds(watch, 16):
                for name, vm in machines.items():
                    assert told[vm.pid].stalled is None, name
                    seen[name].add(told[vm.pid].state)
        save.join()
    assert took[0] > 10.0
    assert WatchState.STOPPED in seen["debugged"]
    assert WatchState.STARVED in seen["starved"]


def _save(vm: lab.Machine) -> float:
    began = time.monotonic()
    vm.hmp("savevm one", within=90)
    return time.monotonic() - began


class Recorder(CaptureLauncher):
    """Writes down what it is asked to start, and starts nothing."""

    started: list[tuple[str, bool]]

    def start(self, vm: str, target: str, pid: int, *, light: bool, patient: bool = False) -> bool:
        del target, pid, patient
        self.started = [*getattr(self, "started", []), (vm, light)]
        return True


def test_three_vms_on_one_frozen_file_system_are_the_hosts_matter_and_one_is_captured(
    build: lab.Build, tmp_path: Path
) -> None:
    with lab.file_system() as mounted, ExitStack() as vms:
        machines = []
        for number in range(3):
            image = lab.disk(mounted.mount / f"d{number}", mebibytes=8)
            drive = f"if=none,id=disk0,format=raw,file={image},aio=threads"
            machines.append(vms.enter_context(lab.qemu(build, "-drive", drive, *DISK, name=f"web{number}")))
        vms.enter_context(lab.frozen(mounted))
        launcher = Recorder(tmp_path)
        only = frozenset(each.pid for each in machines)
        watch = Watch(discovery=Discovery(only=only), launcher=launcher)
        vms.callback(watch.close)
        watch.round()
        for vm in machines:
            in_flight(vm, "disk0", 2, within=2)
        for told in rounds(watch, 25):
            if all(each.stalled for each in told.values()):
                break
    assert {each.stalled for each in told.values()} == {StallKind.HOST}
    assert [light for _, light in launcher.started].count(False) == 1
    assert {vm for vm, light in launcher.started if light} == {each.target for each in told.values()}
    assert watch.gate.suppressed[Suppression.STORM] == 2


def test_a_full_store_costs_the_capture_and_says_so_and_the_stall_is_counted(
    stock: lab.Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lab.file_system() as mounted, wedges_disks.throttled(stock) as stuck:
        store = mounted.mount / "autopsy"
        store.mkdir(mode=0o700)
        fill = ["dd", "if=/dev/zero", f"of={mounted.mount}/full", "bs=1M", "status=none"]
        subprocess.run(fill, check=False, stderr=subprocess.DEVNULL)
        monkeypatch.setenv("STATE_DIRECTORY", str(store))
        launcher = CaptureLauncher(tmp_path)
        watch = Watch(discovery=Discovery(only=frozenset({stuck.vm.pid})), launcher=launcher)
        try:
            last = next(told for told in rounds(watch, 25) if told and told[stuck.vm.pid].stalled)
        finally:
            watch.close()
    assert last[stuck.vm.pid].stalls == {StallKind.DISK: 1}
    assert (launcher.running, watch.gate.suppressed[Suppression.STORE]) == ([], 1)


def test_nothing_of_a_vm_that_is_watched_is_ever_stopped(build: lab.Build) -> None:
    with wedges_disks.throttled(build) as stuck, watching(stuck.vm.pid) as watch:
        words = [sys.executable, "-c", STOPWATCH, str(stuck.vm.pid), "13"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as stopwatch:
            stalled = [told for told in rounds(watch, 12) if told[stuck.vm.pid].stalled]
            looks, *stops = stopwatch.communicate(timeout=60)[0].split()
    assert stalled
    assert int(looks) > 1000
    assert stops == []
