"""The watch over real VMs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from autopsy.drill.machine import Machine
from autopsy.watch.model import WatchState
from support import lab, verdicts
from support.watching.noticing import rounds, watching
from support.wedged import wedges, wedges_beyond, wedges_disks, wedges_found
from support.wedged.wedges import Stuck

pytestmark = pytest.mark.live

PROGRAM = (sys.executable, "-m", "autopsy", "watch")


def once(*pids: int) -> dict[int, dict[str, Any]]:
    """Return what `watch --once --json` says of each process."""
    only = [word for pid in pids for word in ("--only", str(pid))]
    done = subprocess.run([*PROGRAM, "--once", "--json", *only], capture_output=True, check=True, timeout=60)
    return {vm["pid"]: vm for vm in json.loads(done.stdout)["vms"]}


def test_a_single_look_tells_what_stands_from_what_is_slow_or_waits_to_be_asked(stock: lab.Build) -> None:
    with ExitStack() as vms:
        stuck: dict[str, Stuck] = {
            name: vms.enter_context(begin)
            for name, begin in {
                "limit": wedges_disks.throttled(stock),
                "server": wedges_disks.nbd_stopped(stock),
                "device": wedges_found.loop_device(stock),
                "slow": wedges_beyond.at_its_limit(stock),
                "export": wedges_beyond.pulled_backup(stock),
                "main loop": wedges.connecting(stock),
                "made up for": wedges_beyond.after_a_drain_at_its_limit(stock),  # the last: it lasts for 20 s
            }.items()
        }
        before = {pid: verdicts.threads(pid) for pid in (each.vm.pid for each in stuck.values())}
        found = once(*before)
        harm = [line for pid, threads in before.items() for line in verdicts.harm(threads, verdicts.threads(pid))]
        seen = {name: found[each.vm.pid] for name, each in stuck.items()}
    assert {name: each["kind"] for name, each in seen.items()} == {
        "limit": "disk",
        "server": "disk",
        "device": "host",
        "slow": "",
        "made up for": "",
        "export": "",
        "main loop": "mainloop",
    }
    assert [seen[name]["requests_in_flight"] for name in ("limit", "server", "made up for", "export")] == [64, 20, 1, 0]
    assert harm == []


def test_what_is_paused_stopped_frozen_or_waits_for_a_migration_is_told_as_that(stock: lab.Build, short: Path) -> None:
    with ExitStack() as vms:
        kvm = {"accelerate": lab.KVM}
        paused = vms.enter_context(lab.qemu(stock, "-S", **kvm))
        incoming = vms.enter_context(lab.qemu(stock, "-incoming", f"unix:{short}/m", **kvm))
        stopped = vms.enter_context(wedges_disks.nbd_stopped(stock)).vm
        idle = vms.enter_context(lab.qemu(stock))
        vms.enter_context(lab.stopped(stopped))
        frozen = vms.enter_context(wedges.cgroup_frozen(stock)).vm
        machines = {"paused": paused, "incoming": incoming, "stopped": stopped, "frozen": frozen, "idle": idle}
        with watching(*(each.pid for each in machines.values())) as watch:
            seen = {}
            for told in rounds(watch, 9):
                seen = {name: told[each.pid] for name, each in machines.items()}
                assert not any(each.stalled or each.suspect for each in seen.values())
    assert {name: each.state for name, each in seen.items()} == {
        "paused": WatchState.PAUSED,
        "incoming": WatchState.PAUSED,
        "stopped": WatchState.STOPPED,
        "frozen": WatchState.STOPPED,
        "idle": WatchState.WATCHED,
    }


def test_a_vm_whose_memory_map_is_locked_costs_nobody_else_a_round() -> None:
    if not lab.kvm_works():
        lab.missing("needs /dev/kvm")
    with lab.file_system() as storage, wedges_disks.nbd_stopped(lab.build("7.2")) as beside:
        ram = f"memory-backend-file,id=m,size=64M,mem-path={storage.mount}/ram,share=on"
        disk = ("-blockdev", "driver=null-co,node-name=n0,read-zeroes=on", "-device", "virtio-blk-pci,id=vd0,drive=n0")
        words = ("-object", ram, "-machine", "memory-backend=m", "-S", *disk)
        with lab.qemu("7.2", *words, accelerate=lab.KVM, boots=True) as vm:
            with lab.frozen(storage), watching(vm.pid, beside.vm.pid) as watch:
                vm.qmp("cont")
                lab.until("its vCPU hangs", lambda: lab.any_thread_in(vm.pid, "D"))
                with pytest.raises(TimeoutError):
                    vm.qemu_io(lab.of_device("vd0"), "read 0 16M", within=0.5)
                for told in rounds(watch, 20):
                    if told[beside.vm.pid].suspect and told[vm.pid].suspect:
                        break
                assert told[beside.vm.pid].suspect
                assert (told[vm.pid].suspect, told[vm.pid].state) == (True, WatchState.UNREADABLE)
            vm.process.send(signal.SIGKILL)


def test_a_vm_that_ends_is_forgotten_with_its_files() -> None:
    with lab.qemu("7.2") as vm, watching(vm.pid) as watch:
        assert [each.pid for each in watch.round().vms] == [vm.pid]
        (sampled,) = watch.vms.values()
        vm.process.end()
        sampled.files.sampled_ns = 0
        assert watch.round().vms == ()
        assert (sampled.files.threads, watch.vms) == ({}, {})


@contextmanager
def server_and_vm(build: lab.Build) -> Iterator[tuple[lab.NbdServer, Machine]]:
    with lab.folder() as place, lab.nbd(lab.disk(place / "d")) as server:
        node = f"driver=nbd,node-name=nbd0,{server.server}"
        disk = ("-blockdev", node, "-device", "virtio-blk-pci,id=vd0,drive=nbd0")
        with lab.qemu(build, *disk, name="web1") as vm:
            yield server, vm


def bundles(place: Path) -> list[Path]:
    """Return the sealed bundles, with their reports beside them."""
    return [each for each in sorted(place.glob("*.tar.zst")) if each.with_name(f"{each.name[:-8]}.html").exists()]


def verdict(bundle: Path) -> dict[str, Any]:
    words = [sys.executable, "-m", "autopsy", "analyze", str(bundle), "--json"]
    found: dict[str, Any] = json.loads(subprocess.run(words, capture_output=True, check=True, timeout=60).stdout)
    return found


def test_a_stall_is_captured_while_it_lasts_and_though_the_watch_ends(stock: lab.Build, short: Path) -> None:
    out = short / "out"
    out.mkdir()
    with server_and_vm(stock) as (server, vm):
        words = [*PROGRAM, "--only", str(vm.pid), "--out", str(out)]
        with subprocess.Popen(words, stderr=subprocess.PIPE) as watch:
            try:
                server.process.stop()
                wedges.in_flight(vm, lab.of_device("vd0"))
                assert watch.stderr is not None
                told = iter(watch.stderr.readline, b"")  # on a quiet host the light bundle is told of first
                assert any(line.split()[-2:] == [b"stalled:", b"disk"] for line in told)
                watch.send_signal(signal.SIGKILL)
            finally:
                watch.kill()
        lab.until("both bundles are sealed", lambda: len(bundles(out)) == 2, seconds=90)
        server.process.resume()
        lab.until("the writes went on", lambda: lab.writes_done(vm, "vd0") == 8)
        told_of = {answer["where"]: answer for answer in map(verdict, bundles(out))}  # of one second, in any order
    assert told_of.keys() == {"unknown", "peer"}  # the light one, and the full one
    assert any(str(server.process.pid) in word or "nbd" in word for word in told_of["peer"]["objects"])
