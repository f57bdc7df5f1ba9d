"""Monitors that are asked what their disks have completed: real QEMUs, and what a connection costs them."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from autopsy.capture.qmp import disk_counts
from autopsy.commands.watch import CompletedCounter
from autopsy.drill.machine import Machine
from autopsy.target.identity import stat_of
from autopsy.watch.config import Sampling, WatchConfig
from autopsy.watch.listed import silence
from autopsy.watch.model import MonitorOutcome, WatchedVm
from autopsy.watch.signs.monitors import MonitorAsking
from support import lab
from support.builds import version
from support.watching.noticing import rounds, watching
from support.wedged import device_held
from support.wedged.small_guests import WRITE_NOW_AND_THEN

pytestmark = pytest.mark.live

QUICKLY = Sampling(every_seconds=0.3)
ASKING = WatchConfig(
    sampling=QUICKLY, monitor=MonitorAsking(ask_blockstats=True, every_seconds=0.3, silent_seconds=2.0)
)
LONGEST = 5.0  # seconds that one VM may be asked for, on a busy machine


def outcome(vm: Machine) -> MonitorOutcome:
    began = time.monotonic()
    found = disk_counts.counter().count(vm.pid, stat_of(f"/proc/{vm.pid}").start_ticks)
    assert time.monotonic() - began < LONGEST
    return found.outcome


@contextmanager
def connected(path: Path) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        assert connection.recv(4096).startswith(b'{"QMP"')
        yield


def test_a_request_that_a_device_model_alone_holds_is_suspected_like_a_guest_that_computes() -> None:
    build = lab.build("10.0.2-debug")
    with ExitStack() as vms:
        codes = (WRITE_NOW_AND_THEN, device_held.WRITES_THEN_COMPUTES, device_held.COMPUTES)
        held, computes, never = (vms.enter_context(device_held.on_lsi(build, code)) for code in codes)
        pids = {held.pid, computes.pid, never.pid}
        more = {"config": ASKING, "count_completed": CompletedCounter().count}
        suspected: dict[int, WatchedVm] = {}
        with watching(*pids, **more) as watch:
            lost = False
            for told in rounds(watch, 40):
                assert not any(vm.stalled for vm in told.values())
                suspected |= {pid: vm for pid, vm in told.items() if vm.suspect}
                if not lost and told[held.pid].monitor_asks.get(MonitorOutcome.COUNTED, 0) > 8:
                    device_held.lose_completions(held)
                    lost = True
                if suspected.keys() >= {held.pid, computes.pid}:
                    break
            assert lost
            assert watch.gate.suppressed == {}  # nothing was to be captured: it would have been refused here
    assert suspected.keys() == {held.pid, computes.pid}
    for vm in suspected.values():
        assert [disk.name for disk in vm.silent_disks] == ["sd0"]
        assert "the guest may only compute" in silence(vm.silent_disks)


def greetings(log: Path) -> int:
    """Return how many clients a monitor has greeted."""
    return log.read_bytes().count(b'"QMP"')


def test_no_monitor_is_connected_to_but_where_the_configuration_says_so(short: Path) -> None:
    log = short / "log"  # QEMU greets each client, and writes down what it says
    chardev = f"socket,id=q,path={short}/q,server=on,wait=off,logfile={log}"
    with lab.qemu("7.2", "-chardev", chardev, "-mon", "chardev=q,mode=control", boots=True) as vm, ExitStack() as ours:
        for path in (vm.monitor, vm.control):
            ours.enter_context(connected(path))
        for config, asked in ((WatchConfig(sampling=QUICKLY), False), (ASKING, True)):
            with watching(vm.pid, config=config, count_completed=CompletedCounter().count) as watch:
                for told in rounds(watch, 20 if asked else 2):
                    if MonitorOutcome.COUNTED in told[vm.pid].monitor_asks:
                        break
                assert bool(told[vm.pid].monitor_asks) is asked
            assert bool(greetings(log)) is asked
        before = greetings(log)
        with connected(short / "q"):
            lab.until("it has greeted us", lambda: greetings(log) == before + 1)
            assert outcome(vm) is MonitorOutcome.TAKEN
            assert greetings(log) == before + 1


def test_a_vm_that_does_not_answer_or_could_block_is_left_alone() -> None:
    iothread = ("-object", "iothread,id=io0")
    with lab.qemu("7.2", *iothread) as old, lab.qemu("10.0.2", *iothread) as new:
        locks = int(version(lab.build("7.2")).partition(".")[0]) < 9
        told = MonitorOutcome.LOCKS if locks else MonitorOutcome.COUNTED
        lab.until("the old one was left alone", lambda: outcome(old) is told)
        lab.until("the new one told", lambda: outcome(new) is MonitorOutcome.COUNTED)
        with lab.stopped(new):
            assert outcome(new) is MonitorOutcome.SILENT
        assert new.qmp("query-status")["running"]
        lab.until("it told again", lambda: outcome(new) is MonitorOutcome.COUNTED)


def test_what_a_hostile_vm_answers_is_counted_within_bounds() -> None:
    stats = {"rd_operations": 2**63 - 1, "wr_operations": 2**64 - 1, "rd_bytes": 7, "flush_operations": "9"}
    disks = [{"qdev": "", "device": "d" * 5000, "stats": stats}, {"qdev": "q", "stats": []}, 7, {"stats": stats}]
    counts = disk_counts.completed(disks + [{"qdev": f"d{number}", "stats": {}} for number in range(5000)])
    assert len(counts) == disk_counts.MOST_DISKS
    assert counts["d" * disk_counts.NAME_LENGTH] < disk_counts.WRAPS
    assert disk_counts.completed({"a": 1}) == disk_counts.completed(None) == {}
