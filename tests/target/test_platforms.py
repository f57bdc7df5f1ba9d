"""Proxmox VE's and libvirt's own files, around real QEMUs. The trees are stand-ins: neither manager is installed."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopsy.bundle.manifest import Manager
from autopsy.capture.host.vm_files import configuration
from autopsy.drill.machine import Machine
from autopsy.errors import AmbiguousVm, NoSuchVm
from autopsy.kill.restart import command_for
from autopsy.linux.batch import Unanswered
from autopsy.target import qemu_processes, resolve, target
from autopsy.target.command_line import options
from autopsy.target.platforms import catalogue, libvirt, proxmox
from autopsy.target.platforms.platform import Platform, Roots, VmClaim
from autopsy.target.ps import census
from autopsy.target.qemu_process import QemuProcess
from autopsy.target.resolve import is_true
from autopsy.target.target import Target
from support import lab

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("sole_claims")]

UUID = "5e6f7a8b-1234-4cde-8f01-23456789abcd"


@contextmanager
def found(word: str, roots: Roots) -> Iterator[Target]:
    held = target.find_target(word, roots)
    try:
        yield held
    finally:
        os.close(held.pidfd)


@pytest.fixture
def roots(short: Path) -> Roots:
    (short / "qemu-server").mkdir()
    (short / "libvirt" / "qemu").mkdir(parents=True)
    return Roots(run=short, log=short / "log")


@contextmanager
def proxmox_vm(roots: Roots, vmid: str, name: str = "web") -> Iterator[Machine]:
    """Run a QEMU as `qm start` does: -id, -name, its sockets and its pidfile in their places."""
    place = roots.proxmox
    words = ("-pidfile", f"{place}/{vmid}.pid", "-qmp", f"unix:{place}/{vmid}.qmp,server=on,wait=off")
    with lab.qemu("7.2", *words, name=name) as vm:
        lab.until("its pidfile is written", lambda: (place / f"{vmid}.pid").read_text() == f"{vm.pid}\n")
        yield vm


@contextmanager
def libvirt_vm(roots: Roots, name: str, number: int = 3, uuid: str = UUID) -> Iterator[Machine]:
    """Run a QEMU and write what libvirtd would have written about it."""
    with lab.qemu("7.2", "-uuid", uuid, name=name) as vm:
        write_status(roots.libvirt[0], name, vm, number, uuid)
        yield vm


def write_status(folder: Path, name: str, vm: Machine, number: int, uuid: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.pid").write_text(f"{vm.pid}\n")
    (folder / f"{name}.xml").write_text(
        f"<!-- WARNING: generated -->\n<domstatus state='running' reason='booted' pid='{vm.pid}'>\n"
        f"  <monitor path='{vm.monitor}' type='unix'/>\n  <domain type='kvm' id='{number}'>\n"
        f"    <name>{name}</name>\n    <uuid>{uuid}</uuid>\n    <metadata><x:uuid xmlns:x='y'>1</x:uuid></metadata>\n"
        "  </domain>\n</domstatus>\n"
    )


@pytest.mark.live
def test_a_vmid_finds_the_vm_by_its_pidfile(roots: Roots) -> None:
    with proxmox_vm(roots, "102", "web") as vm:
        for word in ("102", "pve:102", "web", str(vm.pid), f"pid:{vm.pid}", f"qmp:{roots.proxmox}/102.qmp"):
            with found(word, roots) as held:
                assert held.pid == vm.pid
                assert (held.record.manager, held.record.name) == ("proxmox", "102")
                assert f"{roots.proxmox}/102.qmp" in [monitor.reachable for monitor in held.record.monitors]


@pytest.mark.live
def test_a_domain_is_found_by_its_name_its_id_and_its_uuid(roots: Roots) -> None:
    with libvirt_vm(roots, "web1") as vm:
        for word in ("web1", "3", UUID, UUID.upper(), UUID.replace("-", "")):
            for form in ("", "libvirt:"):
                with found(form + word, roots) as held:
                    assert held.pid == vm.pid
                    assert (held.record.manager, held.record.name) == ("libvirt", "web1")
        with pytest.raises(NoSuchVm):
            target.find_target("libvirt:1", roots)  # the uuid in its metadata is the guest owner's word, not libvirt's
        (roots.libvirt[0] / "web1.pid").unlink()
        with found("libvirt:web1", roots) as held:
            assert held.pid == vm.pid


@pytest.mark.live
def test_one_name_under_two_managers_is_refused_with_both(roots: Roots) -> None:
    with proxmox_vm(roots, "102", "web") as one, libvirt_vm(roots, "web", number=102) as other:
        for word in ("web", "102"):
            with pytest.raises(AmbiguousVm) as refusal:
                target.find_target(word, roots)
            assert f"pve:102 (process {one.pid})" in refusal.value.cause
            assert f"libvirt:web (process {other.pid})" in refusal.value.cause
        for word, vm in (("pve:102", one), ("libvirt:web", other)):
            with found(word, roots) as held:
                assert held.pid == vm.pid


@pytest.mark.live
def test_a_number_that_is_a_vmid_and_another_vms_pid_is_refused_with_both(roots: Roots) -> None:
    with lab.qemu("7.2", name="plain") as plain, proxmox_vm(roots, str(plain.pid)):
        with pytest.raises(AmbiguousVm) as refusal:
            target.find_target(str(plain.pid), roots)
        assert f"pve:{plain.pid} " in refusal.value.cause
        assert f"pid:{plain.pid} " in refusal.value.cause
    with subprocess.Popen(["sleep", "60"]) as sleep:
        try:
            with proxmox_vm(roots, str(sleep.pid)) as vm, found(str(sleep.pid), roots) as held:
                assert held.pid == vm.pid  # a PID that is no QEMU is not meant
        finally:
            sleep.kill()


@pytest.mark.live
def test_two_users_domains_of_one_name_are_told_apart_by_pid(roots: Roots) -> None:
    uuid, user = UUID.replace("5", "6"), str(os.geteuid())
    with libvirt_vm(roots, "web1") as one, lab.qemu("7.2", "-uuid", uuid, name="web1") as other:
        write_status(roots.run / "user" / user / "libvirt" / "qemu" / "run", "web1", other, 1, uuid)
        with pytest.raises(AmbiguousVm) as refusal:
            target.find_target("libvirt:web1", roots)
        assert f"pid:{one.pid} " in refusal.value.cause
        assert f"pid:{other.pid} " in refusal.value.cause


@pytest.mark.live
def test_a_stale_pidfile_is_told_and_not_believed(roots: Roots) -> None:
    with lab.qemu("7.2", name="somebody-else") as vm:
        for pid in (vm.pid, os.getpid(), 4194303):
            (roots.proxmox / "103.pid").write_text(f"{pid}\n")
            (roots.libvirt[0] / "gone.pid").write_text(f"{pid}\n")
            for word in ("103", "pve:103", "gone", "libvirt:gone"):
                with pytest.raises(NoSuchVm, match=f"names process {pid}, which is not"):
                    target.find_target(word, roots)
        with found(str(vm.pid), roots) as held:
            assert held.record.manager == "process"


@pytest.mark.live
def test_a_claim_holds_by_the_vms_own_monitor_where_the_command_line_hangs(roots: Roots) -> None:
    hung = Unanswered("no answer in 1.0 s", hung=True)
    with proxmox_vm(roots, "102") as one, libvirt_vm(roots, "web1") as other:
        for claim, binary_of in (
            (next(iter(proxmox.claims(roots))), one.pid),
            (next(iter(libvirt.claims(roots))), other.pid),
        ):
            told = qemu_processes.tell([binary_of])[binary_of]
            assert is_true(claim, told)
            assert is_true(claim, QemuProcess(told.binary, hung, None, named=True))
            elsewhere = VmClaim(claim.manager, claim.name, one.pid + other.pid - binary_of, claim.pidfile)
            assert not is_true(elsewhere, QemuProcess(told.binary, hung, None, named=True))


@pytest.mark.live
def test_a_platform_is_found_named_and_told_how_to_start_by_its_line_of_the_catalogue(
    roots: Roots, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lab.qemu("7.2", name="web") as vm:
        claim = VmClaim(cast("Manager", "incus"), "box", vm.pid, roots.run / "box.pid")
        incus = Platform(
            manager=claim.manager,
            form="incus",
            claims=lambda _pids, _roots: (claim,),
            is_alive=lambda claim, process: claim.name == "box" and bool(process.option("name")),
            configuration=lambda name: (f"/var/lib/incus/{name}/backup.yaml",),
            start=lambda record: ("incus", "start", record.name),
        )
        for module in (catalogue, resolve):
            monkeypatch.setattr(module, "PLATFORMS", (*catalogue.PLATFORMS[:-1], incus, catalogue.PLATFORMS[-1]))
        monkeypatch.setattr(resolve, "FORMS", (*resolve.FORMS, incus.form))
        for word in ("box", "incus:box", str(vm.pid), "web"):
            with found(word, roots) as held:
                record = held.record
                assert (record.pid, record.name, record.manager) == (vm.pid, "box", "incus")
                assert command_for(held) == ("incus", "start", "box")
        assert [seen.target for seen in census(roots) if seen.pid == vm.pid] == ["incus:box"]
        assert [read.name for read in configuration("box", "incus")] == ["/var/lib/incus/box/backup.yaml"]


def link(path: Path) -> None:
    path.with_suffix(".real").write_text("1\n")
    path.symlink_to(path.with_suffix(".real"))


def listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))


@pytest.mark.parametrize(
    "lay",
    [
        link,
        os.mkfifo,
        listen,
        Path.mkdir,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to(path),
        lambda path: path.write_bytes(b" " * 100_000 + b"1"),
        lambda path: path.write_text("1 2\n"),
        lambda path: path.write_text("-1\n"),
        lambda path: path.write_text("0\n"),
        lambda path: path.write_bytes(b"\xff\x00"),
        Path.touch,
    ],
)
def test_a_hostile_pidfile_is_no_pidfile(lay: Callable[[Path], object], roots: Roots) -> None:
    for place, word in ((roots.proxmox / "102.pid", "pve:102"), (roots.libvirt[0] / "w.pid", "libvirt:w")):
        lay(place)
        with pytest.raises(NoSuchVm):
            target.find_target(word, roots)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<domstatus",
        "<domstatus/>",
        "<other><domain id='3'/></other>",
        "<!DOCTYPE x [<!ENTITY a 'b'>]><domstatus><domain id='3'/></domstatus>",
        "<a>" * 100_000,
    ],
)
def test_a_hostile_status_file_is_no_status(text: str, tmp_path: Path) -> None:
    (tmp_path / "w.xml").write_text(text)
    assert libvirt.read_status(tmp_path / "w.xml", os.geteuid()) is None


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-be"])
def test_a_status_file_with_entities_is_none_in_whatever_encoding(encoding: str) -> None:
    text = "<!DOCTYPE x [<!ENTITY a 'web1'>]><domstatus><domain id='3'><name>&a;</name></domain></domstatus>"
    assert libvirt.parse_status(f"<?xml version='1.0' encoding='{encoding[:6]}'?>{text}".encode(encoding)) is None


@given(st.binary(max_size=300))
def test_no_bytes_in_a_status_file_raise(raw: bytes) -> None:
    with ExitStack() as stack:
        folder = stack.enter_context(lab.folder())
        (folder / "w.xml").write_bytes(raw)
        assert libvirt.read_status(folder / "w.xml", os.geteuid()) is None


def told_by(arguments: tuple[str, ...]) -> QemuProcess:
    return QemuProcess(Unanswered("not asked"), arguments, options(arguments), named=True)


@pytest.mark.parametrize(
    ("arguments", "alive"),
    [
        (("/usr/bin/kvm", "-id", "102", "-pidfile", "/var/run/qemu-server/102.pid"), True),
        (("/usr/bin/qemu-system-aarch64", "-pidfile", "/run/qemu-server/102.pid"), True),
        (("qemu-system-x86_64", "--pidfile", "/run/qemu-server/102.pid"), True),
        (("/usr/bin/kvm", "-pidfile", "/var/run/qemu-server/1102.pid"), False),
        (("/usr/bin/kvm", "-append", "-pidfile /run/qemu-server/102.pid"), False),
        (("/usr/bin/sleep", "-pidfile", "/run/qemu-server/102.pid"), False),
        (("/usr/bin/kvm",), False),
        ((), False),
    ],
)
def test_a_vm_is_alive_by_proxmoxs_own_rule(arguments: tuple[str, ...], alive: bool) -> None:  # noqa: FBT001 - a table
    claim = VmClaim("proxmox", "102", 1, Roots().proxmox / "102.pid")
    assert proxmox.is_alive(claim, told_by(arguments)) is alive
