"""Why the kernel does not let us look into a process, told by the signs that each of its guards shows."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

from autopsy.dataclass import dataclass
from autopsy.text import printable

CAP_SYS_PTRACE = 19  # linux/capability.h
LOG = "the kernel's log (`dmesg`, `ausearch -m avc`) has its denial"


@dataclass(frozen=True, slots=True)
class Guards:
    """What may stand between us and a process. Labels are those of AppArmor or SELinux, empty where there is neither.

    `yama` is kernel.yama.ptrace_scope, empty where the kernel has no Yama.
    """

    root: bool
    may_trace: bool
    same_users: bool
    yama: str = ""
    ours: str = ""
    theirs: str = ""
    selinux: bool = False


def guards_of(pid: int, top: Path = Path("/")) -> Guards:
    """Read the signs; what cannot be read counts as absent."""
    status = _text(top / "proc/self/status")
    effective = next((line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), "0")
    return Guards(
        root=os.geteuid() == 0,
        may_trace=bool(int(effective, 16) >> CAP_SYS_PTRACE & 1),
        same_users=_link(top / "proc/self/ns/user") == _link(top / f"proc/{pid}/ns/user"),
        yama=_text(top / "proc/sys/kernel/yama/ptrace_scope"),
        ours=_label(top / "proc/self/attr/current"),
        theirs=_label(top / f"proc/{pid}/attr/current"),
        selinux=_text(top / "sys/fs/selinux/enforce") == "1",
    )


def lockdown(top: Path = Path("/")) -> str:
    """Return what kernel lockdown takes from us, empty where it is off: not the process, but what debugfs tells."""
    mode = re.search(r"\[(integrity|confidentiality)\]", _text(top / "sys/kernel/security/lockdown"))
    if mode is None:
        return ""
    return f"the kernel is locked down ({mode[1]}): debugfs is closed, which tells of requests in blk-mq, Ceph and NFS"


def as_root() -> str:
    """Return the command line that was typed as root can run it, whose PATH need not lead to where we are installed."""
    program = os.path.realpath(sys.argv[0])
    if not os.access(program, os.X_OK):
        return shlex.join(("sudo", sys.executable, "-m", "autopsy", *sys.argv[1:]))
    return shlex.join(("sudo", program, *sys.argv[1:]))


def explain(guards: Guards) -> tuple[str, str]:
    """Return the likeliest reason for a refusal (empty when it is plain privilege), and what would lift it."""
    if guards.yama == "3":
        return "kernel.yama.ptrace_scope=3", "this setting lasts until the host restarts; `autopsy ps` works"
    if not guards.may_trace and not guards.root:
        return "", f"run as root: `{as_root()}`; or with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"
    if not guards.may_trace:
        return "we are root without CAP_SYS_PTRACE", "give CAP_SYS_PTRACE to this container or unit, or run on the host"
    return _by_labels(guards)


def _by_labels(guards: Guards) -> tuple[str, str]:
    """Explain a refusal of somebody who has every privilege that there is to have."""
    if guards.selinux:
        return (
            f"SELinux enforces: {guards.ours or 'we'} may not trace {guards.theirs or 'it'}",
            f"{LOG}; run from an unconfined shell (`runcon`, `semanage permissive -a`)",
        )
    if guards.ours and "unconfined" not in guards.ours:
        return (
            f"AppArmor confines us by {guards.ours}",
            f"{LOG}; the profile needs `ptrace (read, trace) peer={guards.theirs.partition(' ')[0] or '*'},`",
        )
    if not guards.same_users:
        return "it lives in another user namespace", "run on the host: capabilities count in one's own namespace alone"
    return "though we may trace", f"{LOG}; a security module or a seccomp filter of this container refuses"


def _text(path: Path) -> str:
    try:
        with open(path, "rb") as stream:
            return stream.read(1 << 14).decode("utf-8", "replace").strip("\0\n ")
    except OSError:
        return ""


def _label(path: Path) -> str:
    return printable(_text(path), 120)


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
