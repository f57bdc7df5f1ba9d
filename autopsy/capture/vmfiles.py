"""What the host keeps of the VM in files: its configuration without its secrets, and its log."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from itertools import pairwise

from autopsy.capture.procfs import Process, read_file, read_tail
from autopsy.capture.readers import Cut, Read

MOST_CONFIG = 1 << 20
MOST_LOG = 64 << 10
REMOVED = rb"\1(removed)"

# What may be a secret in VMID.conf, in a domain's XML and in QEMU arguments that either may hold.
SECRETS = (
    re.compile(
        rb"^(\s*[\w-]*(?:passw(?:or)?d|passphrase|secret|token)[\w-]*\s*:\s*)\S.*$", re.IGNORECASE | re.MULTILINE
    ),
    re.compile(
        rb"(\b[\w-]*(?:passw(?:or)?d|passphrase|token)[\w-]*\s*=\s*)(?:'[^']*'|\"[^\"]*\"|[^\s,'\"<>]+)", re.IGNORECASE
    ),
    re.compile(rb"(\bsecret\b[^\s'\"]*,data=)[^\s,'\"<>]+", re.IGNORECASE),
    re.compile(rb"(<(?:secret|passwd|password|passphrase)\b[^>/]*>)[^<]+", re.IGNORECASE),
)


def without_secrets(config: bytes) -> bytes:
    """Return a configuration with the values of passwords and the like removed."""
    for pattern in SECRETS:
        config = pattern.sub(REMOVED, config)
    return config


def configuration(cmdline: bytes, name: str, manager: str) -> list[Read]:
    """Return reads of the VM's configuration; /etc/pve is a FUSE file system that hangs without quorum or disk."""
    match manager:
        case "proxmox":
            vmid = proxmox_id(cmdline)
            paths = [f"/etc/pve/qemu-server/{vmid}.conf", "/etc/pve/storage.cfg"] if vmid else []
        case "libvirt":
            paths = [f"{folder}/{name}.xml" for folder in ("/run/libvirt/qemu", "/etc/libvirt/qemu") if _plain(name)]
        case _:
            paths = []
    return [
        Read(path, partial(_configuration, path), "pmxcfs" if path.startswith("/etc/pve") else "") for path in paths
    ]


def log(process: Process, name: str, manager: str) -> list[Read]:
    """Return reads of where QEMU's words go, the likeliest first; a manager may have kept them for itself."""
    paths = [f"/var/log/libvirt/qemu/{name}.log"] if manager == "libvirt" and _plain(name) else []
    return [Read(path, partial(read_tail, path, MOST_LOG)) for path in (*paths, *_own_streams(process))]


def proxmox_id(cmdline: bytes) -> str:
    """Return what follows `-id` on a QEMU command line that Proxmox wrote, empty when there is no number."""
    words = cmdline.split(b"\0")
    following = next((after for word, after in pairwise(words) if word == b"-id"), b"")
    return following.decode("ascii", "replace") if following.isdigit() else ""


def _configuration(path: str) -> bytes | Cut:
    found = read_file(path, MOST_CONFIG)
    if isinstance(found, Cut):
        return Cut(without_secrets(found.data), found.why)
    return without_secrets(found)


def _plain(name: str) -> bool:
    return bool(name) and "/" not in name and "\0" not in name and name not in {".", ".."}


def _own_streams(process: Process) -> Iterator[str]:
    """Yield stderr, then stdout, where they are files."""
    for number in (2, 1):
        try:
            link = process.link(f"fd/{number}")
        except OSError:
            continue
        if link.startswith(b"/") and not link.startswith(b"/dev/"):
            yield f"/proc/{process.pid}/fd/{number}"
