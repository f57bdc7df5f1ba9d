"""libvirt's domains, by its pidfiles and status XML; libvirtd itself is not asked, for it may be stuck too."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

from autopsy.bundle.schema import Domain
from autopsy.capture.commandline import options, vm_name
from autopsy.capture.files import NotPlain, read_plain
from autopsy.capture.managers.claim import Claim, Roots, Status, listed, pid_in

MOST_XML = 4 << 20
UUID = re.compile(r"[0-9a-fA-F]{8}-?([0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}")
SYSTEM = "qemu:///system"
SOCKETS = ("virtqemud-sock", "libvirt-sock")  # of the daemon of QEMU alone since libvirt 5.6; of the one for everything


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
    status = status_of(claim)
    return status is not None and (status.number == word or _bare(status.uuid) == _bare(word))


def _bare(uuid: str) -> str:
    return uuid.replace("-", "").lower()


def status_of(claim: Claim) -> Status | None:
    """Return what a domain's status file says, None when there is none, or none that can be trusted."""
    return claim.inside.status if claim.inside else read_status(claim.pidfile.with_name(f"{claim.name}.xml"))


def domain_of(claim: Claim, roots: Roots) -> Domain:
    """Return how virsh is told of a domain from here.

    virsh takes `3` for an id before it takes it for a name; a uuid means one domain alone.
    """
    status = status_of(claim)
    word = status.uuid if status and UUID.fullmatch(status.uuid) else claim.name
    if claim.inside:
        return Domain(connection="", word=word, root=claim.inside.root)
    folder = claim.pidfile.parent
    if folder == roots.libvirt[0]:
        return Domain(connection=SYSTEM, word=word)
    return Domain(connection=_session(folder.parent.parent), word=word)


def _session(folder: Path) -> str:
    """Return the address of the daemon whose socket is in a user's runtime folder."""
    socket = next((folder / name for name in SOCKETS if (folder / name).is_socket()), None)
    return f"qemu+unix:///session?socket={socket}" if socket else ""


def read_status(path: Path) -> Status | None:
    """Return what a status file says, None when there is none, or none that can be trusted."""
    try:
        return parse_status(read_plain(path, MOST_XML))
    except (OSError, NotPlain):
        return None


def parse_status(raw: bytes) -> Status | None:
    """Return what the bytes of a status file say, None when they are none that can be trusted."""
    if b"<!DOCTYPE" in raw or b"<!ENTITY" in raw:  # libvirt writes none; entities can grow without bound
        return None
    try:
        root = ET.fromstring(raw)  # noqa: S314 - bounded, and without a DTD there is nothing to expand
    except (ET.ParseError, ValueError):
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
    status = status_of(claim)
    return status is not None and bool(status.monitor) and status.monitor == path
