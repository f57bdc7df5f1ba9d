"""The host around the VM, read so that none of its files can hold the rest back."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopsy.bundle import layout
from autopsy.capture.host import cgroups, kernel_log, storage_clients, vm_files
from autopsy.capture.host import step as host
from autopsy.capture.proc import witness
from autopsy.capture.reading.reader import SectionRead
from autopsy.capture.step import Collected, Scene, TimedOut
from support import lab, looking


def look(at: Scene) -> Collected:
    outcome = host.collect_host(at)
    assert isinstance(outcome, Collected), outcome
    return outcome


def managed(at: Scene, manager: str, name: str) -> Scene:
    record = msgspec.structs.replace(at.target.record, manager=manager, name=name)
    return dataclasses.replace(at, target=dataclasses.replace(at.target, record=record))


@pytest.mark.live
def test_the_devices_below_a_disk_are_followed_down(stock: lab.Build, short: Path) -> None:
    with lab.file_system() as mounted:
        image = lab.disk(mounted.mount / "d.raw", mebibytes=16)
        with lab.qemu(stock, "-drive", f"file={image},format=raw,id=disk0,if=none") as vm:
            with looking.scene(vm.pid, short) as at:
                witness.witness_threads(at)
            with looking.scene(vm.pid, short, layout.HOST) as at:
                look(at)
                told = looking.found(at, layout.HOST_FILES)
                log = (at.folder / layout.VM_LOG).exists()
    loop = os.path.basename(mounted.device)
    listing = told["block-devices"].data.decode().splitlines()
    assert any(line.startswith(f"{loop} 7:") and f"below {mounted.mount} (ext4, fd " in line for line in listing)
    below = [line.split()[0] for line in listing if line.endswith(f"below {loop}")]
    assert below, listing  # what the loop's own file lies on
    for device in (loop, *below):
        assert len(told[f"/sys/class/block/{device}/inflight"].data.split()) == 2
        assert told[f"/sys/class/block/{device}/stat"].data
    assert told[f"/sys/class/block/{loop}/loop/backing_file"].data.endswith(b".img\n")
    assert told[f"/sys/class/block/{loop}/queue/scheduler"].data
    assert b"f_bavail " in told[f"statvfs {mounted.mount}"].data
    assert str(mounted.mount).encode() in told[f"/proc/{vm.pid}/mountinfo"].data
    assert log  # QEMU's stderr is a file here


def test_the_host_is_told_by_absolute_paths(tmp_path: Path) -> None:
    with looking.scene(os.getpid(), tmp_path, layout.HOST) as at:
        look(at)
        told = looking.found(at, layout.HOST_FILES)
        assert (at.folder / layout.JOURNAL).exists()
        assert not (at.folder / layout.VM_CONFIG).exists()  # nobody manages this process
    for path in ("/proc/loadavg", "/proc/meminfo", "/proc/vmstat", "/proc/diskstats", "/proc/uptime", "/proc/swaps"):
        assert told[path].data
    assert told["/proc/sys/fs/aio-max-nr"].data == Path("/proc/sys/fs/aio-max-nr").read_bytes()
    assert told["/proc/sys/vm/dirty_ratio"].data
    assert told[f"/proc/{os.getpid()}/cgroup"].data == Path("/proc/self/cgroup").read_bytes()


@pytest.mark.live
def test_a_frozen_control_group_is_seen(stock: lab.Build, short: Path) -> None:
    with lab.qemu(stock) as vm, lab.frozen_cgroup(vm.pid) as group, looking.scene(vm.pid, short, layout.HOST) as at:
        look(at)
        told = looking.found(at, layout.HOST_FILES)
    states = [section.data for name, section in told.items() if name.startswith(f"{group}/")]
    assert any(data in {b"FROZEN\n", b"1\n"} or b"frozen 1" in data for data in states)


def test_a_configuration_that_hangs_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def configuration(*_: object) -> list[SectionRead]:
        hung = SectionRead("/etc/pve/qemu-server/102.conf", lambda: b"%d" % (time.sleep(600) or 0), "pmxcfs", 0.3)
        return [hung, SectionRead("/etc/pve/storage.cfg", lambda: pytest.fail("tried"), "pmxcfs")]

    monkeypatch.setattr(vm_files, "configuration", configuration)
    with looking.scene(os.getpid(), tmp_path, layout.HOST) as at:
        outcome = host.collect_host(at)
        assert isinstance(outcome, TimedOut)
        assert "102.conf did not answer in 0.3 s" in outcome.why
        assert looking.found(at, layout.VM_CONFIG)["/etc/pve/storage.cfg"].error.startswith("not tried")
        assert looking.found(at, layout.HOST_FILES)["/proc/loadavg"].data
        assert (at.folder / layout.JOURNAL).exists()


def test_a_file_system_whose_daemon_hangs_costs_only_its_room(short: Path) -> None:
    with lab.fuse(lab.disk(short / "d.raw")) as export:
        code = f"image = open({str(export.file)!r}, 'rb'); import time; print('ready', flush=True); time.sleep(600)"
        with looking.python(code) as pid:
            with looking.scene(pid, short) as at:
                witness.witness_threads(at)
            with lab.stopped(export.process), looking.scene(pid, short, layout.HOST) as at:
                outcome = host.collect_host(at)
                told = looking.found(at, layout.HOST_FILES)
    assert isinstance(outcome, TimedOut)
    assert outcome.why.startswith(f"statvfs {export.file} did not answer")
    assert "; " not in outcome.why
    assert "did not answer" in told[f"statvfs {export.file}"].error
    assert told["/proc/loadavg"].data


def test_a_managers_configuration_is_stored_without_its_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "web1.xml").write_text(
        "<domain><name>web1</name><graphics type='vnc' port='5901' passwd='hunter2'/></domain>"
    )
    monkeypatch.setattr(
        vm_files,
        "configuration",
        lambda *_: [SectionRead("web1.xml", lambda: vm_files._configuration(str(tmp_path / "web1.xml")))],
    )
    with looking.scene(os.getpid(), tmp_path, layout.HOST) as at:
        look(managed(at, "libvirt", "web1"))
        stored = (at.folder / layout.VM_CONFIG).read_bytes()
    assert b"hunter2" not in stored
    assert b"port='5901' passwd='(removed)'/>" in stored


@pytest.mark.parametrize(
    "line",
    [
        "cipassword: hunter2 and more",
        "args: -object secret,id=s0,data=hunter2,format=raw -vnc :1,password=hunter2",
        "<graphics type='spice' passwd='hunter2' passwdValidTo='2030'/>",
        '<auth username="u" password="hunter2">',
        "<secret type='raw'>hunter2</secret>",
        "  password hidden: hunter2".replace(" hidden", ""),
        "rbd: ceph\n\tpassword: hunter2\n\tpool: vm",
    ],
)
def test_a_secret_is_removed_wherever_it_stands(line: str) -> None:
    assert b"hunter2" not in vm_files.hidden(line.encode())


def test_what_is_no_secret_stays() -> None:
    config = b"name: web1\nscsi0: local-lvm:vm-102-disk-0,iothread=1,aio=native\n"
    assert vm_files.hidden(config) == config


def test_only_a_plain_name_becomes_part_of_a_path() -> None:
    assert [read.name for read in vm_files.configuration("102", "proxmox")] == [
        "/etc/pve/qemu-server/102.conf",
        "/etc/pve/storage.cfg",
        "/etc/pve/ha/manager_status",
        "/etc/pve/ha/resources.cfg",
    ]
    for manager in ("proxmox", "libvirt", "process"):
        for name in ("../../etc/shadow", "a/b", "", ".."):
            assert vm_files.configuration(name, manager) == []
            assert vm_files.tasks(name, manager) == []
            assert vm_files.rrd(name, manager) == []


def test_the_kernels_log_reads_as_dmesg_prints_it() -> None:
    assert kernel_log.kernel_line(b"6,1234,98765432,-;EXT4-fs (loop0): mounted\n SUBSYSTEM=block\n") == (
        b"<6>[   98.765432] EXT4-fs (loop0): mounted\n"
    )
    lab.need_root()
    lines = kernel_log.kernel_log().splitlines()
    assert 0 < len(lines) <= kernel_log.KMSG_LINES


@given(st.binary(max_size=300))
def test_any_record_of_the_kernel_is_one_line(record: bytes) -> None:
    assert kernel_log.kernel_line(record).endswith(b"\n")


def test_a_limit_above_the_group_counts_too() -> None:
    mountinfo = b"30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
    folders = {read.name.rpartition("/")[0] for read in cgroups.reads([b"0::/qemu.slice/102.scope\n"], mountinfo)}
    assert folders == {"/sys/fs/cgroup/qemu.slice/102.scope", "/sys/fs/cgroup/qemu.slice"}
    assert list(cgroups.reads([b"0::/../../elsewhere\n", b"damaged\n"], mountinfo)) == []
    assert cgroups.scopes([b"0::/qemu.slice/102.scope\n"]) == ("102.scope",)
    given_away = (
        b"0::/user.slice/user-1000.slice/user@1000.service/ssh.service\n1:name=systemd:/system.slice/a.service\n"
    )
    assert cgroups.scopes([given_away]) == ("a.service", "user@1000.service")


def test_what_network_storage_says_of_itself_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for pool in ("rpool", "tank"):
        (tmp_path / pool).mkdir()
        (tmp_path / pool / "state").write_text("SUSPENDED\n")
    monkeypatch.setattr(storage_clients, "PATTERNS", (f"{tmp_path}/*/state", "/no/such/file"))
    with looking.scene(os.getpid(), tmp_path, layout.HOST) as at:
        look(at)
        told = looking.found(at, layout.HOST_FILES)
    assert told[f"{tmp_path}/tank/state"].data == told[f"{tmp_path}/rpool/state"].data == b"SUSPENDED\n"
