"""libvirt's domains, by its pidfiles and status XML; libvirtd itself is not asked, for it may be stuck too."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec

from autopsy.bundle.manifest import Domain, TargetRecord
from autopsy.files.plain import NotPlain
from autopsy.linux.batch import Unanswered, ask
from autopsy.target.command_line import vm_name
from autopsy.target.platforms.owned import Folder, NotOwned, is_trusted, opened, read_owned
from autopsy.target.platforms.platform import MOST_PIDFILE, Platform, Roots, Status, VmClaim, pid_of
from autopsy.target.qemu_process import QemuProcess

MOST_XML = 4 << 20
EACH = 0.3  # seconds for one user's folder: a file system of that user's may lie there, and hang
OVERALL = 1.0
UUID = re.compile(r"[0-9a-fA-F]{8}-?([0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}")
SYSTEM = "qemu:///system"
SOCKETS = ("virtqemud-sock", "libvirt-sock")  # of the daemon of QEMU alone since libvirt 5.6; of the one for everything


def claims(roots: Roots) -> tuple[VmClaim, ...]:
    """Return what every pidfile claims, dead ones included; a status file stands in for a pidfile that is missing.

    The system's folder speaks for every process, a user's for that user's alone.
    """
    system, session = roots.libvirt
    users = roots.sessions
    return (
        *(claim for claim in _claims(roots.run, system) if is_trusted(claim.owner)),
        *_claims(roots.run, session),
        *(claim for uid, folder in users.items() if is_trusted(uid) for claim in _claims(roots.run, folder, uid)),
        *_others({uid: folder for uid, folder in users.items() if not is_trusted(uid)}, roots),
    )


def _others(folders: Mapping[int, Path], roots: Roots) -> Iterator[VmClaim]:
    questions = [partial(_encoded, roots.run, folder, uid) for uid, folder in folders.items()]
    answers = ask(questions, each=EACH, overall=OVERALL) if questions else ()
    for (uid, folder), answer in zip(folders.items(), answers, strict=True):
        if not isinstance(answer, Unanswered):
            for name, pid in msgspec.msgpack.decode(answer, type=tuple[tuple[str, int], ...]):
                yield VmClaim("libvirt", name, pid, folder / f"{name}.pid", owner=uid)


def _encoded(run: Path, folder: Path, uid: int) -> bytes:
    return msgspec.msgpack.encode([(claim.name, claim.pid) for claim in _claims(run, folder, uid)])


def _claims(run: Path, path: Path, owner: int | None = None) -> tuple[VmClaim, ...]:
    """Return what the files of one folder claim; `owner` is whose it must be."""
    with opened(run, path) as folder:
        if folder is None or owner not in (None, folder.owner):
            return ()
        pidfiles = folder.named(".pid")
        claims = [_claim(folder, name, pid_of(_small(folder, f"{name}.pid", MOST_PIDFILE))) for name in pidfiles]
        for name in sorted(set(folder.named(".xml")) - set(pidfiles)):
            status = parse_status(_small(folder, f"{name}.xml", MOST_XML))
            claims.append(_claim(folder, name, status.pid if status else None))
        return tuple(claim for claim in claims if claim is not None)


def _small(folder: Folder, name: str, most: int) -> bytes:
    try:
        return folder.read(name, most)
    except (OSError, NotPlain, NotOwned):
        return b""


def _claim(folder: Folder, name: str, pid: int | None) -> VmClaim | None:
    return None if pid is None else VmClaim("libvirt", name, pid, folder.path / f"{name}.pid", owner=folder.owner)


def answers_to(claim: VmClaim, word: str) -> bool:
    """Return whether a domain is meant by its name, its id or its uuid."""
    if claim.name == word:
        return True
    if not (word.isdecimal() or UUID.fullmatch(word)):
        return False
    status = status_of(claim)
    return status is not None and (status.number == word or _bare(status.uuid) == _bare(word))


def _bare(uuid: str) -> str:
    return uuid.replace("-", "").lower()


def status_of(claim: VmClaim) -> Status | None:
    """Return what a domain's status file says, None when there is none, or none that can be trusted."""
    return (
        claim.inside.status if claim.inside else read_status(claim.pidfile.with_name(f"{claim.name}.xml"), claim.owner)
    )


def domain_of(claim: VmClaim, roots: Roots) -> Domain:
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
    user = None if claim.owner == os.geteuid() else claim.owner
    return Domain(connection=_session(folder.parent.parent, claim.owner), word=word, user=user)


def _session(folder: Path, owner: int) -> str:
    """Return the address of the daemon whose socket is in a user's runtime folder, empty where that is not the user's.

    The socket could be swapped before virsh connects: that is why virsh is run as that user, too.
    """
    for name in SOCKETS:
        with suppress(OSError):
            status = os.lstat(folder / name)
            if stat.S_ISSOCK(status.st_mode) and status.st_uid == owner:
                return f"qemu+unix:///session?socket={folder / name}"
    return ""


def read_status(path: Path, owner: int) -> Status | None:
    """Return what a status file of that owner says, None when there is none, or none that can be trusted."""
    try:
        return parse_status(read_owned(path, owner, MOST_XML))
    except (OSError, NotPlain, NotOwned):
        return None


def parse_status(raw: bytes) -> Status | None:
    """Return what the bytes of a status file say, None when they are none that can be trusted."""
    # libvirt writes neither; entities can grow without bound, and in UTF-16 nobody but the parser would see them.
    if any(mark in raw for mark in (b"<!DOCTYPE", b"<!ENTITY", b"\0")):
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


def is_alive(claim: VmClaim, process: QemuProcess) -> bool:
    """Return whether the process was started as that domain: libvirt gives it `-name guest=NAME` and `-uuid`.

    Where its status file tells another name, uuid or process than these, nothing of it is believed.
    """
    if vm_name(process.options or ()) != claim.name:
        return False
    status = status_of(claim)
    if status is None:
        return True
    same_pid = claim.inside is not None or status.pid in (None, claim.pid)  # a container counts its own processes
    return same_pid and status.name == claim.name and _bare(status.uuid) == _bare(process.option("uuid"))


def is_its_monitor(claim: VmClaim, path: str) -> bool:
    """Return whether a listening socket is the monitor that the domain's status file tells of."""
    status = status_of(claim)
    return status is not None and bool(status.monitor) and status.monitor == path


DOMAINS = ("/run/libvirt/qemu", "/run/libvirt/qemu/run", "/etc/libvirt/qemu")


def _is_plain(name: str) -> bool:
    return bool(name) and "/" not in name and "\0" not in name and name not in {".", ".."}


def _configuration(name: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}.xml" for folder in DOMAINS) if _is_plain(name) else ()


def _log(name: str) -> tuple[str, ...]:
    return (f"/var/log/libvirt/qemu/{name}.log",) if _is_plain(name) else ()


def _virsh(record: TargetRecord, command: str) -> tuple[str, ...]:
    domain = record.domain
    if domain is None or not domain.connection:
        return ()
    return ("virsh", "-q", "-c", domain.connection, command, f"--domain={domain.word}")


def _why_no_start(record: TargetRecord) -> str:
    if record.domain is not None and not record.domain.root:
        return "its libvirt daemon has no socket that is its user's own"
    return "its libvirt lives in a container; whoever runs that (KubeVirt: the VirtualMachine object) starts it"


LIBVIRT = Platform(
    manager="libvirt",
    form="libvirt",
    claims=lambda _pids, roots: claims(roots),
    answers_to=answers_to,
    is_alive=is_alive,
    is_its_monitor=is_its_monitor,
    domain_of=domain_of,
    configuration=_configuration,
    log=_log,
    end=lambda record: _virsh(record, "destroy"),
    end_words="virsh destroy",
    daemon="libvirtd",
    start=lambda record: _virsh(record, "start"),
    start_words="virsh start",
    why_no_start=_why_no_start,
)
