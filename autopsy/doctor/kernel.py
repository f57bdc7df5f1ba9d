"""What this kernel and its guards let anybody see: its log, debugfs, its types; Yama, lockdown."""

from __future__ import annotations

import os
import re
from pathlib import Path

from autopsy.capture.host.kernel_log import KMSG
from autopsy.doctor.checks import Check, lacks, note, ok
from autopsy.linux.tasks.walk import TYPES
from autopsy.target.permissions import lockdown

DEBUGFS = "/sys/kernel/debug/block"
YAMA = "proc/sys/kernel/yama/ptrace_scope"
SCOPES = {
    "0": "any process of the same user may be traced",
    "1": "only one's own children, unless CAP_SYS_PTRACE",
    "2": "only with CAP_SYS_PTRACE",
    "3": "nobody may trace until the host restarts",
}


def kernel(top: Path = Path("/")) -> tuple[Check, ...]:
    """Return what a capture would be refused by the kernel, whichever VM it is of."""
    return (_yama(top), _lockdown(top), _types(top), _log(top), _debugfs(top))


def _yama(top: Path) -> Check:
    try:
        scope = (top / YAMA).read_text("ascii").strip()
    except OSError:
        return ok("Yama", "not in this kernel")
    words = f"ptrace_scope={scope}: {SCOPES.get(scope, 'not known')}"
    return note("Yama", words, "it cannot be lifted without a restart") if scope == "3" else ok("Yama", words)


def _lockdown(top: Path) -> Check:
    if why := lockdown(top):
        return note("lockdown", why)
    return ok("lockdown", "off, or not in this kernel")


def _types(top: Path) -> Check:
    if (top / TYPES.lstrip("/")).exists():
        return ok("BTF", f"{TYPES} is there")
    return note("BTF", f"{TYPES} is not there", "a kernel with CONFIG_DEBUG_INFO_BTF reads threads without a stop")


def _log(top: Path) -> Check:
    try:
        os.close(os.open(top / KMSG.lstrip("/"), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return lacks("kernel log", f"{KMSG}: {error.strerror}", "run as root, or with CAP_SYSLOG")
    return ok("kernel log", f"{KMSG} can be read")


def _debugfs(top: Path) -> Check:
    """Say whether requests in blk-mq are told; a kernel without that part of debugfs has none to tell."""
    try:
        os.listdir(top / DEBUGFS.lstrip("/"))
    except FileNotFoundError:
        mounted = re.search(r" debugfs ", _text(top / "proc/self/mounts"))
        if mounted:
            return note("debugfs", "mounted, and tells of no block device: requests in blk-mq stay unseen")
        return lacks(
            "debugfs", "not mounted: requests in blk-mq stay unseen", "mount -t debugfs debugfs /sys/kernel/debug"
        )
    except OSError as error:
        return lacks("debugfs", f"{DEBUGFS}: {error.strerror}: requests in blk-mq stay unseen", "run as root")
    return ok("debugfs", "tells of requests in blk-mq")


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""
