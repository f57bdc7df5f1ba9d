"""What a VM's manager keeps of its configuration tells name, process and disks of the one VM that is meant."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from autopsy.bundle import layout
from autopsy.facts.cite import Known
from autopsy.facts.model.facts import DiskFact, Facts
from autopsy.incoming import reading
from support.built import pastes
from support.built.imported import facts_of
from support.built.monitor_text import DOMAIN, OTHER, PROXMOX, PVEREPORT, STATUS
from support.built.pastes import DISPATCH, POLL
from tests.incoming.test_beside import LIBVIRT, PS, material

CONFIG = layout.evidence(layout.HOST, layout.VM_CONFIG)
DUMP = pastes.dump(("qemu-system-x86", (*POLL, "blk_drain", *DISPATCH)))  # its thread is 5000


def disks(facts: Facts) -> dict[str, DiskFact]:
    assert isinstance(facts.disks, Known)
    return {each.name: each for each in facts.disks.value}


def known(fact: object) -> object:
    assert isinstance(fact, Known)
    return fact.value


def test_a_domain_s_xml_tells_its_disks(tmp_path: Path) -> None:
    facts = facts_of(f"# virsh dumpxml web1\n{DOMAIN}\n\n{DUMP}", tmp_path)
    assert (facts.vm.name, facts.vm.manager) == ("web1", "libvirt")
    found = disks(facts)
    assert set(found) == {"virtio-disk0", "scsi0-0-0-0"}
    first = found["virtio-disk0"]
    assert (known(first.model), known(first.iothread)) == ("virtio-blk-pci", "iothread1")
    assert dict(known(first.limits).values) == {"bps-total": 1000, "iops-write": 7}  # type: ignore[attr-defined]  # Limits
    assert [(node.driver, node.filename, node.aio) for node in first.nodes] == [
        ("qcow2", "/srv/web1.qcow2", ""),
        ("file", "/srv/web1.qcow2", "native"),
    ]
    assert [node.server for node in found["scsi0-0-0-0"].nodes if node.server] == ["rbd:pool/web1-data"]
    assert [each.name for each in facts.vm.configured_disks] == ["vda", "sda"]


def test_proxmox_ve_s_configuration_tells_its_disks(tmp_path: Path) -> None:
    facts = facts_of(f"root@pve1:~# qm config 100\n{PROXMOX}\n{DUMP}", tmp_path)
    assert (facts.vm.name, facts.vm.manager) == ("web1", "proxmox")
    found = disks(facts)
    assert set(found) == {"scsi0", "virtio1"}
    assert known(found["scsi0"].iothread) == "iothread-virtioscsi0"
    assert dict(known(found["scsi0"].limits).values) == {  # type: ignore[attr-defined]  # Limits
        "bps-read": 10 << 20,
        "iops-total": 50,
    }


@pytest.mark.parametrize(
    "text", [DOMAIN, PROXMOX, f"```\n{DOMAIN}```", "\n".join(f"> {line}" for line in DOMAIN.split("\n"))]
)
def test_secrets_of_a_configuration_are_not_kept(text: str, tmp_path: Path) -> None:
    kept = material(tmp_path, text.encode()).files[CONFIG]
    assert b"web1" in kept
    assert b"hunter2" not in kept


def test_a_report_of_proxmox_ve_tells_whose_process_the_backtrace_is_of(tmp_path: Path) -> None:
    found = material(tmp_path, PVEREPORT.encode(), DUMP.encode())
    assert [(each.name, each.pid, each.also) for each in found.machines] == [("web1", 5000, ("100",))]
    kept = found.files[CONFIG]
    assert b"scsi0" in kept
    assert b"as-it-was" not in kept
    assert b"db1" not in kept
    assert b"rootfs" not in kept


@pytest.mark.parametrize(("name", "meant"), [("101", "db1"), ("db1", "db1"), ("100", "web1")])
def test_a_vm_is_chosen_by_its_name_or_number(name: str, meant: str, tmp_path: Path) -> None:
    assert [each.name for each in material(tmp_path, PVEREPORT.encode(), name=name).machines] == [meant]


def test_of_many_configurations_none_is_taken_without_a_name(tmp_path: Path) -> None:
    found = material(tmp_path, PROXMOX.encode(), OTHER.encode())
    assert found.machines == ()
    assert CONFIG not in found.files
    assert any("--name" in note for note in found.notes)


def test_a_command_line_and_a_configuration_are_one_vm(tmp_path: Path) -> None:
    found = material(tmp_path, PS.encode(), DOMAIN.encode(), DUMP.encode())
    assert [(each.name, each.pid, each.manager) for each in found.machines] == [("web1", 5000, "libvirt")]
    assert {CONFIG, layout.evidence(layout.WITNESS, layout.CMDLINE)} <= set(found.files)


def test_libvirt_s_own_status_file_tells_the_process(tmp_path: Path) -> None:
    assert [each.pid for each in material(tmp_path, STATUS.encode(), DUMP.encode()).machines] == [5000]


def packed(*files: tuple[str, str]) -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as archive:
        for name, text in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return whole.getvalue()


def test_a_must_gather_of_kubevirt_tells_a_vm_by_its_own_name(tmp_path: Path) -> None:
    top = "must-gather.local.1/quay-io-kubevirt/namespaces/shop/vms"
    domain = DOMAIN.replace("<name>web1<", "<name>shop_web1<")
    log = LIBVIRT.replace("guest=web1", "guest=shop_web1")
    gathered = packed(
        (f"{top}/web1/virt-launcher-web1-abcde.dumpxml.xml", domain),
        (f"{top}/web1/shop_web1.log", log),
        (f"{top}/web1/virt-launcher-web1-abcde.ruletables.txt", "table ip nat {\n}\n"),
        (f"{top}/db1/virt-launcher-db1-fghij.dumpxml.xml", DOMAIN.replace("<name>web1<", "<name>shop_db1<")),
    )
    found = material(tmp_path, gathered, name="web1")
    assert [(each.name, each.manager) for each in found.machines] == [("shop_web1", "libvirt")]
    assert {CONFIG, layout.evidence(layout.WITNESS, layout.CMDLINE)} <= set(found.files)
    assert b"db1" not in b"".join(found.files.values())


def test_a_sos_report_tells_what_virsh_and_libvirt_s_files_told(tmp_path: Path) -> None:
    top = "sosreport-host1-2026-11-20-abcdefg"
    report = packed(
        (f"{top}/sos_commands/virsh/virsh_-r_dumpxml_web1", DOMAIN),
        (f"{top}/sos_commands/virsh/virsh_-r_list_--all", " Id   Name   State\n-----\n 1    web1   running\n"),
        (f"{top}/run/libvirt/qemu/web1.xml", STATUS),
        (f"{top}/etc/libvirt/qemu/db1.xml", DOMAIN.replace("web1", "db1")),
        (f"{top}/var/log/libvirt/qemu/web1.log", LIBVIRT),
        (f"{top}/sos_commands/process/ps_auxwwwm", PS),
        (f"{top}/etc/shadow", "root:$6$abc:1::::::\n"),
    )
    found = material(tmp_path, report, DUMP.encode())
    assert [(each.name, each.pid, each.manager) for each in found.machines] == [("web1", 5000, "libvirt")]
    whole = b"".join(found.files.values())
    assert b"db1" not in whole
    assert b"root:$6" not in whole


@pytest.mark.parametrize(
    "text",
    [
        "<domain type='kvm'>" * 1000,
        "<domain type='kvm'>\n<name></name></domain>\n",
        "memory: 1\nscsi0: \n",
        "scsi0: a\n" * 5000,
        "memory: 1\nscsi0: x,iops=1e999,mbps=nan,iops_rd=-\n",
        "[x]\n[y]\nmemory: 1\n",
        "<domain type='kvm'>\n<name>x</name><disk device='disk'><target dev='a'/></disk></domain>\n",
    ],
)
def test_odd_configurations_break_nothing(text: str, tmp_path: Path) -> None:
    facts_of(text, tmp_path)


def test_what_speaks_of_qemu_in_a_report_is_read_however_much_else_there_is(tmp_path: Path) -> None:
    others = "2026-11-20T03:15:00 something of somebody else's\n" * 40_000
    files = [(f"sos/var/log/{number}.log", others) for number in range(40)]  # some 80 MB
    late = others[: 200 << 10] + LIBVIRT
    found = material(tmp_path, packed(*files, ("sos/var/log/libvirt/qemu/web1.log", late)), name="web1")
    assert [each.name for each in found.machines] == ["web1"]
    assert not any("more text" in note for note in found.notes)


def test_a_report_with_more_text_of_qemu_s_than_is_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MOST_TEXT", 1 << 20)
    logs = "2026-11-20T03:15:00 qemu-system-x86_64: something\n" * 40_000
    found = material(tmp_path, packed(("sos/a", logs), ("sos/b", logs)))
    assert any("more text" in note for note in found.notes)


def test_a_process_s_command_line_in_a_report_is_read_as_the_kernel_gives_it(tmp_path: Path) -> None:
    line = "/usr/bin/kvm -id 100 -name web1,debug-threads=on -m 4096 ".replace(" ", "\0")
    found = material(tmp_path, packed(("proc/5000/cmdline", line)))
    assert [(each.name, each.also) for each in found.machines] == [("web1", ("100",))]
