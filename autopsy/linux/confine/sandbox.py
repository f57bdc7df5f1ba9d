"""Takes from this process all but what it holds, one folder, and the system's own libraries: for a stranger's bytes.

Root becomes a user that nobody else is, and what it starts can kill and see nobody; files are held back by Landlock,
sockets, mounts and other processes by seccomp, memory and time by limits. What a kernel does not have is said.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from autopsy.linux.confine import landlock, seccomp

UID = 61999  # of the range in which systemd makes up users for a while: no package, and no daemon, has it
INSIDE = Path("/root")  # where root's scratch folder appears inside: in its place nobody else could see anything

SYSTEM = tuple(
    map(
        Path,
        ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/etc/ld.so.cache", "/nix/store", "/gnu/store", "/dev/urandom"),
    )
)
NULL = Path("/dev/null")

CLONE_NEWNS = 0x00020000
CLONE_NEWIPC = 0x08000000
CLONE_NEWNET = 0x40000000
MS_BIND, MS_REC, MS_SLAVE = 0x1000, 0x4000, 0x80000
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
CAPABILITIES = 64  # more than there are
CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """What is left to a process.

    `scratch` is an empty folder of its own, if it needs one; `readable` are files and folders besides.
    `keep` are descriptors that it goes on to hold, `writable` devices that it may open, such as its terminal; `memory`
    bounds its address space.
    """

    scratch: Path | None = None
    readable: tuple[Path, ...] = ()
    writable: tuple[Path, ...] = ()
    keep: tuple[int, ...] = ()
    memory: int = 4 << 30
    file_size: int = 1 << 30
    cpu_seconds: int = 300
    descriptors: int = 1024


@dataclass(frozen=True, slots=True)
class Confined:
    """The scratch folder as it is named inside, / where there is none, and in words what this kernel did not give."""

    scratch: Path
    lacking: tuple[str, ...]


def python_tree() -> tuple[Path, ...]:
    """Return the folders that our own modules come from."""
    found = dict.fromkeys((sys.prefix, sys.base_prefix, *(path for path in sys.path if os.path.isabs(path))))
    return tuple(Path(path) for path in found if path != "/")


def enter(box: Sandbox) -> Confined:
    """Confine this process for good, and all that it starts.

    Raises:
        OSError: the kernel refused what it has; whoever asked for it must do nothing with a stranger's bytes then.
    """
    lacking: list[str] = []
    scratch = box.scratch.absolute() if box.scratch else None
    if os.geteuid() == 0:
        scratch = _become_nobody_else(scratch, lacking)
    os.chdir(scratch or "/")
    for what, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, box.memory),
        (resource.RLIMIT_FSIZE, box.file_size),
        (resource.RLIMIT_CPU, box.cpu_seconds),
        (resource.RLIMIT_NOFILE, box.descriptors),
        (resource.RLIMIT_MEMLOCK, 0),
    ):
        limit(what, most)
    _checked(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    reading = (*SYSTEM, NULL, *box.readable)
    if not landlock.restrict(reading, ((scratch, NULL) if scratch else (NULL,)) + box.writable):
        lacking.append("this kernel has no Landlock (5.13)")
    if not seccomp.deny(signals=False):
        lacking.append("system calls are not filtered on this architecture")
    return Confined(scratch or Path("/"), tuple(lacking))


def send_no_signal() -> None:
    """Give up signals as well: for a program that the confined one starts, and ends.

    Raises:
        OSError: the kernel refused.
    """
    filter_calls(signals=True)


def filter_calls(*, signals: bool) -> None:
    """Give up sockets, other processes, mounts and the like, with `signals` those as well; files stay.

    Raises:
        OSError: the kernel refused.
    """
    _checked(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    seccomp.deny(signals=signals)


def _become_nobody_else(scratch: Path | None, lacking: list[str]) -> Path | None:
    """Move the scratch folder to where our new user can reach it, and become that user."""
    apart = CLONE_NEWIPC | (CLONE_NEWNS if scratch else 0)
    if not seccomp.knows_this_machine():
        apart |= CLONE_NEWNET  # elsewhere there is no socket to be had: the kernel is spared a network
    try:
        _checked(_libc.unshare(apart), "unshare")
        if scratch:
            # A slave: what is unmounted outside is not held by us.
            _checked(_libc.mount(None, b"/", None, MS_REC | MS_SLAVE, None), "mount")
            _checked(_libc.mount(os.fsencode(scratch), os.fsencode(INSIDE), None, MS_BIND | MS_REC, None), "mount")
            os.chown(INSIDE, UID, UID)
    except OSError as error:
        lacking.append(f"no user of its own: {error.filename}: {error.strerror}")
        _drop_capabilities()
        return scratch
    os.setgroups([])
    os.setresgid(UID, UID, UID)
    os.setresuid(UID, UID, UID)
    # The kernel forgets both where the user changes; without the second, /proc/self/fd would be root's.
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    return INSIDE if scratch else None


def _drop_capabilities() -> None:
    """Leave root nothing but its number, even in what it starts."""
    for number in range(CAPABILITIES):
        _libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    _checked(_libc.capset(ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)())), "capset")


def limit(what: int, most: int) -> None:
    """Bound one of this process's resources; a narrower bound that it has already stays."""
    _, hard = resource.getrlimit(what)
    wanted = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (wanted, wanted))


def _checked(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
