"""libvirt's domains, by its pidfiles and status XML; libvirtd itself is not asked, for it may be stuck too."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from autopsy.capture.commandline import options, vm_name
from autopsy.capture.files import NotPlain, read_plain
from autopsy.capture.managers.claim import Claim, Roots, listed, pid_in

MOST_XML = 4 << 20
UUID = re.compile(r"[0-9a-fA-F]{8}-?([0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}")


@dataclass(frozen=True, slots=True)
class Status:
    """What a domain's status XML says of it. Absent words are empty."""

    name: str
    uuid: str
    number: str
    pid: int | None
    monitor: str


def claims(roots: Roots) -> tuple[Claim, ...]:
    """Return what every pidfile claims, dead ones included; a status file stands in for a pidfile that is missing."""
    found = []
    for folder in roots.libvirt:
        pidfiles = listed(folder, ".pid")
        found += [_claim(folder, name, pid_in(folder / f"{name}.pid")) for name in pidfiles]
        for name in sorted(set(listed(folder, ".xml")) - set(pidfiles)):
            status = read_status(folder / f"{name}.xml")
            found.append(_claim(folder, name, status.pid if status else None))
    return tuple(claim for claim in found if claim is not None)


def _claim(folder: Path, name: str, pid: int | None) -> Claim | None:
    return None if pid is None else Claim("libvirt", name, pid, folder / f"{name}.pid")


def answers_to(claim: Claim, word: str) -> bool:
    """Return whether a domain is meant by its name, its id or its uuid."""
    if claim.name == word:
        return True
    if not (word.isdecimal() or UUID.fullmatch(word)):
        return False
    status = read_status(claim.pidfile.with_name(f"{claim.name}.xml"))
    return status is not None and (status.number == word or _bare(status.uuid) == _bare(word))


def _bare(uuid: str) -> str:
    return uuid.replace("-", "").lower()


def read_status(path: Path) -> Status | None:
    """Return what a status file says, None when there is none, or none that can be trusted."""
    try:
        raw = read_plain(path, MOST_XML)
        if b"<!DOCTYPE" in raw or b"<!ENTITY" in raw:  # libvirt writes none; entities can grow without bound
            return None
        root = ET.fromstring(raw)  # noqa: S314 - bounded, and without a DTD there is nothing to expand
    except (OSError, NotPlain, ET.ParseError, ValueError):
        return None
    domain = root.find("domain")
    monitor = root.find("monitor")
    if root.tag != "domstatus" or domain is None:
        return None
    pid = root.get("pid", "")
    return Status(
        name=domain.findtext("name", ""),
        uuid=domain.findtext("uuid", "").strip(),
        number=domain.get("id", ""),
        pid=int(pid) if pid.isascii() and pid.isdecimal() else None,
        monitor=monitor.get("path", "") if monitor is not None else "",
    )


def is_alive(claim: Claim, arguments: Sequence[str]) -> bool:
    """Return whether the process was started as that domain: libvirt gives it `-name guest=NAME`."""
    return vm_name(options(arguments)) == claim.name


def is_its_monitor(claim: Claim, path: str) -> bool:
    """Return whether a listening socket is the monitor that the domain's status file tells of."""
    status = read_status(claim.pidfile.with_name(f"{claim.name}.xml"))
    return status is not None and bool(status.monitor) and status.monitor == path
