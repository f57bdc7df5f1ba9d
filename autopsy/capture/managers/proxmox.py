"""Proxmox VE's virtual machines, by its pidfiles and by its own rule of what is alive."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from autopsy.capture.commandline import last, options
from autopsy.capture.files import NotPlain
from autopsy.capture.managers.claim import MOST_PIDFILE, Claim, Roots, pid_of
from autopsy.capture.managers.owned import Folder, NotOwned, is_trusted, opened

# PVE::QemuServer::Helpers::parse_cmdline: `kvm`, or `qemu-` and anything, with or without a folder before it.
PROGRAM = re.compile(r".*kvm|(?:.*/)?qemu-[^/]+")


def claims(roots: Roots) -> tuple[Claim, ...]:
    """Return what every pidfile claims, dead ones included; only root's word counts."""
    with opened(roots.run, roots.proxmox) as folder:
        if folder is None or not is_trusted(folder.owner):
            return ()
        vmids = (vmid for vmid in folder.named(".pid") if vmid.isdecimal())
        return tuple(claim for vmid in vmids if (claim := _claim(folder, vmid)) is not None)


def claim_of(vmid: str, roots: Roots) -> Claim | None:
    """Return what one VMID's pidfile claims, None when there is none."""
    return next((claim for claim in claims(roots) if claim.name == vmid), None)


def _claim(folder: Folder, vmid: str) -> Claim | None:
    try:
        pid = pid_of(folder.read(f"{vmid}.pid", MOST_PIDFILE))
    except (OSError, NotPlain, NotOwned):
        return None
    return None if pid is None else Claim("proxmox", vmid, pid, folder.path / f"{vmid}.pid")


def is_alive(claim: Claim, arguments: Sequence[str]) -> bool:
    """Return whether Proxmox VE itself takes the process for that VM: the program's name, then its -pidfile."""
    if not arguments or not PROGRAM.fullmatch(arguments[0]):
        return False
    return same_place(last(options(arguments), "pidfile"), claim.pidfile)


def same_place(told: str, pidfile: Path) -> bool:
    """Return whether two spellings mean one file; /var/run is /run on every systemd machine.

    By their words alone: the told one comes from the process, and looking it up could hang.
    """
    return bool(told) and _plain(told) == _plain(str(pidfile))


def _plain(path: str) -> str:
    return path.removeprefix("/var") if path.startswith("/var/run/") else path


def is_its_monitor(claim: Claim, path: str) -> bool:
    """Return whether a listening socket is the QMP monitor that Proxmox VE gives this VM."""
    return same_place(path, claim.pidfile.with_suffix(".qmp"))
