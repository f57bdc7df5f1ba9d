"""A VM on a stand-in for a Proxmox VE host: real files, sockets, a real QEMU, and no Proxmox VE."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from autopsy.bundle import layout, sections
from autopsy.bundle.reader import Bundle, open_bundle
from autopsy.target.platforms import proxmox as proxmox_tasks
from support.proxmoxes import PVESTATD, SECRET, config, proxmox, upid

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("sole_claims")]


def answer(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def outcome(told: Any, step: str) -> tuple[str, str]:
    return next((each["outcome"], each["why"]) for each in told["steps"] if each["name"] == step)


def sections_of(evidence: Bundle, file: str) -> dict[str, sections.Section]:
    return {each.name: each for each in sections.parse(evidence.read(layout.evidence(layout.HOST, file)))}


@pytest.mark.live
def test_a_pmxcfs_that_hangs_costs_its_own_files_alone_and_pvestatd_is_waited_for(tmp_path: Path) -> None:
    with proxmox(pmxcfs_hangs=True) as host:
        host.daemon("pvestatd", PVESTATD)
        pid = host.pid
        began = time.monotonic()
        done = host.autopsy("capture", "102", "--then-kill", "--even-if-healthy", "--fast", "--json", "--out", tmp_path)
        assert time.monotonic() - began < 60
        told = answer(done)
        assert (told["target"]["pid"], told["target"]["manager"], told["target"]["name"]) == (pid, "proxmox", "102")
        assert outcome(told, layout.QUERY_STATUS)[0] == "Collected"
        assert outcome(told, layout.HOST)[0] == "TimedOut"
        assert "/etc/pve/qemu-server/102.conf did not answer" in outcome(told, layout.HOST)[1]
        evidence = open_bundle(Path(told["bundle"]))
        assert "not tried" in sections_of(evidence, layout.VM_CONFIG)["/etc/pve/storage.cfg"].error
        assert evidence.read(layout.evidence(layout.HOST, layout.HOST_FILES))
        assert done.returncode == 0, done.stderr
        assert told["kill"]["how"].startswith("SIGKILL; gone after")
        assert "left behind" not in told["kill"]["how"]
        assert "cleaned up" in (host.site.folder / "qmeventd.log").read_text()
        assert host.sh("ls /run/qemu-server") == ""


@pytest.mark.live
def test_what_proxmox_is_in_the_middle_of_is_told_before_the_kill_and_qm_starts_the_vm_again(tmp_path: Path) -> None:
    with proxmox() as host:
        host.write("/etc/pve/qemu-server/102.conf", config("lock: backup"))
        now = time.time()
        shutdown, other = upid("qmshutdown", now - 20), upid("qmstart", now - 10, "1020")
        host.write("/var/log/pve/tasks/active", f"{shutdown} 0\n{other} 0\n")
        host.write("/var/log/pve/tasks/index", f"{upid('vzdump', now - 5000)} {int(now - 4000):08X} OK\n")
        host.write(f"/var/log/pve/tasks/{shutdown.split(':')[4][-1]}/{shutdown}", "shutdown VM 102\n")
        host.write("/var/lib/rrdcached/db/pve-vm-9.0/102", "RRD of 102")
        before = host.pid
        words = ("capture", "pve:102", "--then-kill", "--then-start", "--even-if-healthy", "--json", "--out", tmp_path)
        done = host.autopsy(*words)
        told = answer(done)
        assert "qmshutdown was begun 2" in done.stderr
        assert "qmeventd may SIGKILL this VM 60 s after its quit" in done.stderr
        assert "before the kill: Proxmox VE holds `lock: backup` on its configuration" in done.stderr
        assert "of-the-past" not in done.stderr
        evidence = open_bundle(Path(told["bundle"]))
        stored = sections_of(evidence, layout.VM_CONFIG)["/etc/pve/qemu-server/102.conf"].data
        assert b"cipassword: (removed)" in stored
        assert not [name for name in evidence.names() if SECRET.encode() in evidence.read(name)]
        tasks = [each.data for each in sections_of(evidence, layout.VM_TASKS).values()]
        assert [task.split()[0] for task in tasks] == [b"qmshutdown", b"vzdump"]
        assert tasks[0].endswith(b"shutdown VM 102\n")
        assert b"still running" in tasks[0]
        assert evidence.read(layout.evidence(layout.HOST, layout.RRD)) == b"RRD of 102"
        assert done.returncode == 0, done.stderr
        assert told["start"]["how"].startswith("started again by qm start: process ")
        assert host.pid != before


@pytest.mark.live
def test_high_availability_starts_its_vm_itself_and_that_is_said(tmp_path: Path) -> None:
    with proxmox() as host:
        status = {"service_status": {"vm:102": {"state": "started", "node": "pve1", "running": 1}}}
        host.write("/etc/pve/ha/manager_status", json.dumps(status))
        words = ("--then-kill", "--then-start", "--even-if-healthy", "--fast", "--json", "--out", tmp_path)
        told = answer(host.autopsy("capture", "102", *words))
        assert told["kill"]["done"]
        assert "HA keeps it started: it starts again by itself within seconds" in told["kill"]["how"]
        assert "`ha-manager set vm:102 --state stopped` keeps it down" in told["kill"]["how"]
        assert told["start"]["how"] == "left to HA, which keeps it started and starts it by itself"
        assert host.sh("ls /run/qemu-server") == ""  # qm was not called


def test_tasks_of_other_vms_and_damaged_lines_are_left_out(tmp_path: Path) -> None:
    lines = (
        f"{upid('qmstart', 1000)} 000003F0 OK",
        f"{upid('qmstop', 2000)} 1 000007D8 can't lock file",
        f"{upid('qmstop', 3000, '1020')} 000003F0 OK",
        "UPID:broken",
        "",
    )
    (tmp_path / "index").write_text("\n".join(lines))
    (tmp_path / "active").write_text(f"{upid('qmshutdown', 2500)} 0\n")
    found = proxmox_tasks.recent("102", tmp_path)
    assert [(task.kind, task.began, task.ended) for task in found] == [
        ("qmshutdown", 2500, ""),
        ("qmstop", 2000, "can't lock file"),
        ("qmstart", 1000, "OK"),
    ]
    assert "hurries" in proxmox_tasks.clock("102", tmp_path, now=2540)
    assert proxmox_tasks.clock("102", tmp_path, now=2700) == ""
    assert proxmox_tasks.clock("103", tmp_path, now=2540) == ""
    assert proxmox_tasks.clock("102", tmp_path / "none") == ""
