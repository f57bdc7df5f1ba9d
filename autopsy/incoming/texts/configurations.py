"""Finds what a VM's manager keeps of its configuration: a domain's XML, a VMID.conf or `qm config`, `qm list`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import field

from autopsy.dataclass import dataclass
from autopsy.incoming.material import FoundMachine

MOST_TEXT = 1 << 20  # characters of one configuration
MOST_ALL = 32 << 20  # of all together
MOST_MACHINES = 2_000
MOST_SETTINGS = 1_000
BEGINS = ("<domain ", "<domain>", "<domstatus ")
DOMAIN_ENDS = "</domain>"
STATE = re.compile(r"<domstatus [^>]{0,300}\bpid=['\"](\d{1,9})['\"]")
NAME = re.compile(r"<name>([^<]{1,200})</name>")
UUID = re.compile(r"<uuid>([0-9a-fA-F-]{36})</uuid>")
SETTING = re.compile(r"[a-z][a-z0-9_-]{0,40}: \S")
DISK = re.compile(r"(?:scsi|virtio|sata|ide|efidisk|tpmstate|unused)\d{1,2}: \S")
OF_A_VM = ("memory: ", "cores: ", "scsihw: ", "ostype: ", "smbios1: ", "boot: ", "vmgenid: ", "sockets: ", "bootdisk: ")
# Where the number stands: above the file in pvereport, in what was typed, and in the names of the VM's disks.
VMID = re.compile(r"(?:qemu-server/|\bqm (?:config|showcmd|status|monitor) )(\d{3,9})\b")
VOLUME = re.compile(r"\b(?:vm|base)-(\d{3,9})-(?:disk|cloudinit|state)")
LISTED = re.compile(r"\s*(\d{3,9}) (\S{1,200}) +(?:running|stopped|paused|suspended|prelaunch)\b.* (\d{1,9})\s*")


@dataclass(slots=True)
class Configurations:
    """The configurations met so far, each VM's first."""

    found: dict[tuple[str, str], FoundMachine] = field(default_factory=dict)
    pids: dict[str, int] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)  # of the one that is being read
    size: int = 0
    kept: int = 0
    in_xml: bool = False
    in_snapshot: bool = False
    vmid: str = ""

    def feed(self, line: str) -> bool:
        """Take one line; return whether it belongs to a configuration."""
        bare = line.rstrip("\r\n ")
        start = bare.lstrip(" \t>")
        if self.in_xml:
            return self._xml(bare)
        if start.startswith(BEGINS):
            self._stop()
            self.in_xml = True
            return self._xml(bare)
        return self._setting(bare)

    def end(self) -> None:
        """Take no line of the next file for the rest of this one's configuration."""
        self._stop()
        self.vmid = ""

    def _xml(self, line: str) -> bool:
        self.lines.append(line.lstrip(">"))
        self.size += len(line)
        if DOMAIN_ENDS in line:
            text = "\n".join(self.lines)
            self._reset()
            return self._domain(text)
        if self.size > MOST_TEXT:
            self._reset()
        return True

    def _domain(self, text: str) -> bool:
        name, uuid, state = NAME.search(text), UUID.search(text), STATE.search(text)
        if not name:
            return False
        also: tuple[str, ...] = (uuid[1],) if uuid else ()
        # KubeVirt calls a domain NAMESPACE_NAME.
        also += (name[1].partition("_")[2],) if "_" in name[1] else ()
        self._keep(
            FoundMachine(name=name[1], pid=int(state[1]) if state else 0, also=also, manager="libvirt", config=text)
        )
        return True

    def _setting(self, line: str) -> bool:
        if match := VMID.search(line):
            self._stop()
            self.vmid = match[1]
            return False
        if SETTING.match(line) and len(self.lines) < MOST_SETTINGS and self.size < MOST_TEXT:
            if not self.in_snapshot:
                self.lines.append(line)
                self.size += len(line)
            return bool(DISK.match(line))
        if line.startswith("[") and line.endswith("]") and self.lines:
            self.in_snapshot = True  # what follows is how the VM was once
            return False
        if line and not line.startswith("#"):
            self._stop()
        if listed := LISTED.fullmatch(line):
            self.pids.setdefault(listed[1], int(listed[3]))
            return True
        return False

    def _stop(self) -> None:
        """Judge the lines so far: a VM has a disk, and something of a VM's."""
        lines, vmid = self.lines, self.vmid
        self._reset()
        if not any(map(DISK.match, lines)) or not any(line.startswith(OF_A_VM) for line in lines):
            return
        text = "\n".join(lines) + "\n"
        volume = VOLUME.search(text)
        vmid = vmid or (volume[1] if volume else "")
        name = next((line.removeprefix("name: ") for line in lines if line.startswith("name: ")), "")
        self._keep(FoundMachine(name=name or vmid, pid=0, also=(vmid,) if vmid else (), manager="proxmox", config=text))

    def _reset(self) -> None:
        self.lines, self.size = [], 0
        self.in_xml = self.in_snapshot = False

    def _keep(self, machine: FoundMachine) -> None:
        if len(self.found) < MOST_MACHINES and self.kept + len(machine.config) <= MOST_ALL:
            self.kept += len(machine.config)
            key = machine.name, machine.also[0] if machine.also else ""
            if key not in self.found or (machine.pid and not self.found[key].pid):
                self.found[key] = machine

    def machines(self) -> Iterator[FoundMachine]:
        """Yield each VM's configuration, with its process where a list told it."""
        self._stop()
        for machine in self.found.values():
            pid = machine.pid or next((self.pids[word] for word in machine.also if word in self.pids), 0)
            yield FoundMachine(
                name=machine.name, pid=pid, also=machine.also, manager=machine.manager, config=machine.config
            )
