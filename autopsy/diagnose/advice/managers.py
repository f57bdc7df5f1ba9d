"""What a VM's own manager is told to resume, reset, end or start it; QMP, where it has none."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from autopsy.diagnose.advice import shell
from autopsy.diagnose.advice.shell import line, question
from autopsy.facts.model.facts import VmFact

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,80}")
SYSTEM = "qemu:///system"


@dataclass(frozen=True, slots=True)
class Hand:
    """How this VM is handled from a shell. Every command is empty where it cannot be given."""

    vm: VmFact

    @property
    def domain(self) -> str:
        """Return libvirt's name of the VM, its uuid where the name could be mistaken for something else."""
        if self.vm.manager != "libvirt" or not self.vm.connection:
            return ""
        return self.vm.name if NAME.fullmatch(self.vm.name) else self.vm.domain

    @property
    def vmid(self) -> str:
        """Return the number by which Proxmox VE knows the VM."""
        return self.vm.name if self.vm.manager == "proxmox" and self.vm.name.isdecimal() else ""

    def virsh(self, command: str, *words: str) -> str:
        """Return a command of virsh's on this domain."""
        if not self.domain:
            return ""
        where = () if self.vm.connection == SYSTEM else ("-c", self.vm.connection)
        return line("virsh", *where, command, self.domain, *words)

    def qm(self, command: str, *words: str) -> str:
        """Return a command of qm's on this VM."""
        return line("qm", command, self.vmid, *words) if self.vmid else ""

    def qmp(self, *questions: str) -> str:
        """Return what says these to its monitor, through libvirt where that holds it."""
        if self.domain:
            return shell.both(*(self.virsh("qemu-monitor-command", each) for each in questions))
        if self.vm.manager == "libvirt" or not shell.sayable(self.vm.monitor):
            return ""
        return shell.spoken(self.vm.monitor, questions)

    def qmp_of_vm(self, *questions: str) -> str:
        """Return what says these, of which a storage daemon knows none: it has no VM."""
        return "" if self.vm.is_storage_daemon else self.qmp(*questions)

    def verbs(self) -> Mapping[str, str]:
        """Return the commands that need no more than the VM itself, by the names that runbooks give them."""
        stop = self.qm("stop") or self.virsh("destroy")
        start = self.qm("start") or self.virsh("start")
        end = stop or line("kill", "-KILL", str(self.vm.pid))
        memory = f"/var/tmp/memory-{self.vm.pid}.elf"  # noqa: S108 - a place that is named to a person
        dump = question("dump-guest-memory", paging=False, protocol=f"file:{memory}")
        return {
            "end": end,
            "restart": shell.both(stop, start) or end,
            "start": start,
            "resume": self.qm("resume") or self.virsh("resume") or self.qmp_of_vm(question("cont")),
            "pause-and-resume": shell.both(self.qm("suspend"), self.qm("resume"))
            or shell.both(self.virsh("suspend"), self.virsh("resume"))
            or self.qmp_of_vm(question("stop"), question("cont")),
            "reset": self.qm("reset") or self.virsh("reset") or self.qmp_of_vm(question("system_reset")),
            "wake": self.virsh("dompmwakeup") or self.qmp_of_vm(question("system_wakeup")),
            "keep-memory": self.virsh("dump", "--memory-only", memory) or self.qmp_of_vm(dump),
            "set-clock": self.virsh("domtime", "--sync"),
            "migration": self.virsh("domjobinfo") or self.qmp_of_vm(question("query-migrate")),
            "cancel-migration": self.virsh("domjobabort") or self.qmp_of_vm(question("migrate_cancel")),
            "stay-here": self.qmp_of_vm(question("migrate_cancel"), question("cont")),
            "jobs": self.qmp(question("query-jobs")),
            "stop-backup": line("vzdump", "--stop") if self.vmid else self.virsh("domjobabort"),
            "snapshots": self.qm("listsnapshot"),
            "upgrade": self._upgrade(),
        }

    def _upgrade(self) -> str:
        if self.vm.manager == "proxmox":
            return line("apt-get", "install", "--only-upgrade", "pve-qemu-kvm")
        build = self.vm.qemu_version.casefold()
        if any(word in build for word in ("debian", "ubuntu", "dfsg")):
            return line("apt-get", "install", "--only-upgrade", "qemu-system-x86")
        if re.search(r"\.(?:el\d|fc\d)", build):
            return line("dnf", "upgrade", "qemu-kvm-core")
        return ""
