"""How the VM's manager names and configures its disks: what its own commands must be told."""

from __future__ import annotations

import re
from collections.abc import Iterator

from autopsy.bundle import layout, sections
from autopsy.facts.evidence import Evidence
from autopsy.facts.model.host import ConfiguredDisk

SNAPSHOT = re.compile(rb"^\[", re.MULTILINE)
PROXMOX_DISK = re.compile(rb"^((?:scsi|virtio|sata|ide)\d{1,2}):[ \t]*(\S[^\n]{0,2000})$", re.MULTILINE)
LIBVIRT_DISK = re.compile(rb"<disk\b[^>]{0,200}>(.{0,8000}?)</disk>", re.DOTALL)
TARGET = re.compile(rb"<target\b[^>]{0,200}\bdev=['\"]([^'\"<>&]{1,60})['\"]")
ALIAS = re.compile(rb"<alias\b[^>]{0,200}\bname=['\"]([^'\"<>&]{1,120})['\"]")


def gather_configured_disks(evidence: Evidence) -> tuple[ConfiguredDisk, ...]:
    """Return the disks of the manager's own configuration, none for a process that has no manager."""
    raw = evidence.read(layout.evidence(layout.HOST, layout.VM_CONFIG))
    files = {section.name: section.data for section in sections.parse(raw) if not section.error}
    by_device: dict[str, ConfiguredDisk] = {}
    match evidence.manifest.target.manager:
        case "proxmox":
            by_device = {disk.device: disk for disk in _proxmox(files)}
        case "libvirt":
            by_device = {disk.device: disk for disk in _libvirt(files)}
        case "process":
            pass
    return tuple(by_device.values())


def _proxmox(files: dict[str, bytes]) -> Iterator[ConfiguredDisk]:
    for name, data in files.items():
        if name.endswith(".conf"):
            for key, value in PROXMOX_DISK.findall(SNAPSHOT.split(data)[0]):
                yield ConfiguredDisk(device=_text(key), name=_text(key), options=_text(value.strip()))


def _libvirt(files: dict[str, bytes]) -> Iterator[ConfiguredDisk]:
    """Read the running domain's XML: only that has the aliases, which are QEMU's ids."""
    for name, data in files.items():
        for body in LIBVIRT_DISK.findall(data) if name.endswith(".xml") else ():
            target, alias = TARGET.search(body), ALIAS.search(body)
            if target and alias:
                yield ConfiguredDisk(device=_text(alias[1]), name=_text(target[1]))


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
