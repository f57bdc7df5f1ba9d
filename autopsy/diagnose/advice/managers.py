"""What a VM's own manager is told to resume, reset, end or start it; QMP, where it has none."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from autopsy.dataclass import dataclass
from autopsy.diagnose.advice import shell
from autopsy.diagnose.advice.shell import line, question
from autopsy.facts.model.facts import VmFact

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,80}")
SYSTEM = "qemu:///system"


class Verbs(Mapping[str, str]):
    """Commands by the names that runbooks give them, each made when it is asked for: a verdict needs two or three."""

    __slots__ = ("_made", "_makers")

    def __init__(self, makers: Mapping[str, Callable[[], str]], made: Mapping[str, str] | None = None) -> None:
        self._makers = makers
        self._made = dict(made or {})

    def __getitem__(self, verb: str) -> str:
        if verb not in self._made:
            self._made[verb] = self._makers[verb]()
        return self._made[verb]

    def __contains__(self, verb: object) -> bool:
        return verb in self._makers or verb in self._made

    def __iter__(self) -> Iterator[str]:
        return iter({**self._makers, **self._made})

    def __len__(self) -> int:
        return len({**self._makers, **self._made})

    def beside(self, more: Mapping[str, Callable[[], str]]) -> Verbs:
        """Return them with others."""
        return Verbs({**self._makers, **more}, self._made)


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
            return shell.both(*(self.virsh("qemu-monitor-command", message) for message in questions))
        if self.vm.manager == "libvirt" or not shell.sayable(self.vm.monitor):
            return ""
        return shell.spoken(self.vm.monitor, questions)

    def qmp_of_vm(self, *questions: str) -> str:
        """Return what says these, of which a storage daemon knows none: it has no VM."""
        return "" if self.vm.is_storage_daemon else self.qmp(*questions)

    def verbs(self) -> Verbs:
        """Return the commands that need no more than the VM itself, by the names that runbooks give them."""
        stop = self.qm("stop") or self.virsh("destroy")
        start = self.qm("start") or self.virsh("start")
        end = stop or line("kill", "-KILL", str(self.vm.pid))
        makers: dict[str, Callable[[], str]] = {
            "end": lambda: end,
            "restart": lambda: shell.both(stop, start) or end,
            "start": lambda: start,
            "resume": lambda: self.qm("resume") or self.virsh("resume") or self.qmp_of_vm(question("cont")),
            "pause-and-resume": lambda: (
                shell.both(self.qm("suspend"), self.qm("resume"))
                or shell.both(self.virsh("suspend"), self.virsh("resume"))
                or self.qmp_of_vm(question("stop"), question("cont"))
            ),
            "reset": lambda: self.qm("reset") or self.virsh("reset") or self.qmp_of_vm(question("system_reset")),
            "wake": lambda: self.virsh("dompmwakeup") or self.qmp_of_vm(question("system_wakeup")),
            "keep-memory": self._keep_memory,
            "set-clock": lambda: self.virsh("domtime", "--sync"),
            "migration": lambda: self.virsh("domjobinfo") or self.qmp_of_vm(question("query-migrate")),
            "cancel-migration": lambda: self.virsh("domjobabort") or self.qmp_of_vm(question("migrate_cancel")),
            "stay-here": lambda: self.qmp_of_vm(question("migrate_cancel"), question("cont")),
            "jobs": lambda: self.qmp(question("query-jobs")),
            "stop-backup": lambda: line("vzdump", "--stop") if self.vmid else self.virsh("domjobabort"),
            "snapshots": lambda: self.qm("listsnapshot"),
            "upgrade": self._upgrade,
        }
        return Verbs(makers)

    def _keep_memory(self) -> str:
        memory = f"/var/tmp/memory-{self.vm.pid}.elf"  # noqa: S108 - a place that is named to a person
        dump = question("dump-guest-memory", paging=False, protocol=f"file:{memory}")
        return self.virsh("dump", "--memory-only", memory) or self.qmp_of_vm(dump)

    def _upgrade(self) -> str:
        if self.vm.manager == "proxmox":
            return line("apt-get", "install", "--only-upgrade", "pve-qemu-kvm")
        build = self.vm.qemu_version.casefold()
        if any(word in build for word in ("debian", "ubuntu", "dfsg")):
            return line("apt-get", "install", "--only-upgrade", "qemu-system-x86")
        if re.search(r"\.(?:el\d|fc\d)", build):
            return line("dnf", "upgrade", "qemu-kvm-core")
        return ""
