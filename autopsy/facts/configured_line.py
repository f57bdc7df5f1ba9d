"""What a manager's configuration says of a VM's disks, in the words of a command line, where that was not taken."""

from __future__ import annotations

import re
from collections.abc import Iterator

from autopsy.bundle import layout, sections
from autopsy.facts.cite import Cite
from autopsy.facts.command_line import CommandLine, Options
from autopsy.facts.evidence import Evidence
from autopsy.facts.storage.configured_disks import ALIAS, LIBVIRT_DISK, PROXMOX_DISK, SNAPSHOT, TARGET

PATH = layout.evidence(layout.HOST, layout.VM_CONFIG)
DRIVER = re.compile(r"<driver\b[^>]{0,400}>")
SOURCE = re.compile(r"<source\b[^>]{0,2000}>")
HOST = re.compile(r"<host\b[^>]{0,400}>")
ATTRIBUTE = re.compile(r"\b([a-z_]{1,30})=['\"]([^'\"<>]{0,1000})['\"]")
TUNED = re.compile(r"<iotune>(.{0,4000}?)</iotune>", re.DOTALL)
LIMIT = re.compile(r"<((?:total|read|write)_(?:bytes|iops)_sec|group_name)>([^<]{1,60})<")
# What a device is called by the bus that it hangs on.
MODELS = {"virtio": "virtio-blk-pci", "scsi": "scsi-hd", "sata": "ide-hd", "ide": "ide-hd", "usb": "usb-storage"}
MIB = 1 << 20
# Proxmox VE's options: how many of QEMU's units each is, and QEMU's name.
LIMITS = {
    **{f"mbps{end}": (MIB, f"bps-{kind}") for end, kind in (("", "total"), ("_rd", "read"), ("_wr", "write"))},
    **{f"iops{end}": (1, f"iops-{kind}") for end, kind in (("", "total"), ("_rd", "read"), ("_wr", "write"))},
}


def read(evidence: Evidence) -> CommandLine:
    """Return the drives and devices that the configuration makes, without arguments; empty where there is none."""
    drives: list[Options] = []
    devices: list[Options] = []
    raw = evidence.read(PATH)
    line = 0
    for section in sections.parse(raw):
        if section.error:
            continue
        options = _libvirt(section.data) if section.name.endswith(".xml") else _proxmox(section.data)
        for drive, device in options:
            line = line or section.line
            drives.append(drive)
            devices.append(device)
    if not drives:
        return CommandLine()
    return CommandLine(drives=tuple(drives), devices=tuple(devices), cite=Cite(PATH, line))


def _libvirt(data: bytes) -> Iterator[tuple[Options, Options]]:
    """Yield a drive and its device for each disk that is no CD-ROM; live XML has QEMU's own ids as aliases."""
    for body in LIBVIRT_DISK.finditer(data):
        whole, inner = body[0].decode("utf-8", "replace"), body[1].decode("utf-8", "replace")
        target, alias = TARGET.search(body[1]), ALIAS.search(body[1])
        opening = dict(ATTRIBUTE.findall(whole[: whole.index(">")]))
        if target is None or opening.get("device", "disk") not in {"disk", "lun"}:
            continue
        name = (alias or target)[1].decode("utf-8", "replace")
        driver = _attributes(DRIVER, inner)
        bus = next(
            (dict(ATTRIBUTE.findall(target)).get("bus", "") for target in re.findall(r"<target\b[^>]*", inner)), ""
        )
        drive: dict[str, object] = {"id": name, "if": "none", "file": _file(inner)}
        drive |= {key: driver[key] for key in ("aio", "cache") if key in driver}
        drive |= {"aio": driver["io"]} if "io" in driver else {}
        drive |= {"format": driver["type"]} if "type" in driver else {}
        if limits := _tuned(inner):
            drive["throttling"] = limits
        device: dict[str, object] = {"driver": MODELS.get(bus, bus), "id": name, "drive": name}
        if "iothread" in driver:
            device["iothread"] = f"iothread{driver['iothread']}"
        yield drive, device


def _attributes(element: re.Pattern[str], body: str) -> dict[str, str]:
    match = element.search(body)
    return dict(ATTRIBUTE.findall(match[0])) if match else {}


def _file(body: str) -> str:
    """Return the image as QEMU would be told it: a path, or where a server has it."""
    source, host = _attributes(SOURCE, body), _attributes(HOST, body)
    if path := source.get("file") or source.get("dev") or "":
        return path
    protocol, name = source.get("protocol", ""), source.get("name", "")
    if not protocol:
        return ""
    if protocol == "rbd":
        return f"rbd:{name}"
    place = host.get("socket") or f"{host.get('name', '')}:{host.get('port', '')}".strip(":")
    return f"{protocol}://{place}/{name}".rstrip("/")


def _tuned(body: str) -> dict[str, str]:
    """Return <iotune>'s limits by QEMU's names."""
    match = TUNED.search(body)
    limits = {}
    for name, value in LIMIT.findall(match[1]) if match else ():
        if name == "group_name":
            limits["group"] = value
        elif value.isdecimal() and int(value):
            kind, unit, _ = name.split("_")
            limits[f"{'bps' if unit == 'bytes' else 'iops'}-{kind}"] = value
    return limits


def _proxmox(data: bytes) -> Iterator[tuple[Options, Options]]:
    """Yield a drive and its device for each disk, by the ids that Proxmox VE gives them."""
    single = b"virtio-scsi-single" in data
    for key, value in PROXMOX_DISK.findall(SNAPSHOT.split(data)[0]):
        name = key.decode("ascii", "replace")
        words = value.decode("utf-8", "replace").strip().split(",")
        options = dict(word.partition("=")[::2] for word in words[1:])
        if options.get("media") == "cdrom" or words[0] == "none":
            continue
        # What a volume's name leads to, only the storage's own configuration tells.
        drive: dict[str, object] = {"id": f"drive-{name}", "if": "none"}
        drive |= {word: options[word] for word in ("aio", "cache") if word in options}
        limits = {LIMITS[word][1]: _limit(word, setting) for word, setting in options.items() if word in LIMITS}
        if limits:
            drive["throttling"] = {word: limit for word, limit in limits.items() if limit}
        bus = name.rstrip("0123456789")
        device: dict[str, object] = {"driver": MODELS.get(bus, bus), "id": name, "drive": f"drive-{name}"}
        if options.get("iothread") == "1" and (bus == "virtio" or single):
            number = name.removeprefix(bus)
            device["iothread"] = f"iothread-{'virtio' if bus == 'virtio' else 'virtioscsi'}{number}"
        yield drive, device


def _limit(word: str, limit: str) -> str:
    try:
        return str(int(float(limit) * LIMITS[word][0]))
    except (ValueError, OverflowError):
        return ""
