"""Takes from this process all but what it holds, one folder, and the system's own libraries: for a stranger's bytes.

Root becomes a user that nobody else is, and what it starts can kill and see nobody; files are held back by Landlock,
sockets, mounts, other processes and what files are by seccomp, memory, time and processes by limits. Where the host
runs out of memory, this goes first. What a kernel does not have is said.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path

from autopsy.dataclass import dataclass
from autopsy.linux.confine import landlock, seccomp
from autopsy.linux.confine.syscalls import checked

# Between the users that systemd-homed and systemd's services are given (systemd's UIDS-GIDS): nobody's. Each process
# has another: two captures at once must not reach each other, either.
UIDS = range(60800, 61184)
INSIDE = Path("/root")  # where root's scratch folder appears inside: in its place nobody else could see anything
GIVEN = INSIDE / "given"
ROOM = 2 << 30  # of memory, for all that is written inside
MOST_FILES = 1 << 16
MOST_PROCESSES = 512  # and threads; gdb starts one a processor
GOES_FIRST = b"1000"

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
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_SLAVE = 0x20, 0x1000, 0x4000, 0x80000
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
CAPABILITIES = 64  # more than there are
CAP_DAC_READ_SEARCH = 2
CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """What is left to a process.

    `scratch` is a folder of its own, if it needs one, with what it is given; `readable` are files and folders besides.
    It serves one process: what that leaves there is a stranger's.
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
    """A folder to write in and the one with what was given, as they are named inside; / where there is none.

    `lacking` says in words what this kernel did not give.
    """

    scratch: Path
    given: Path
    lacking: tuple[str, ...]


def python_tree() -> tuple[Path, ...]:
    """Return the folders that our own modules come from; that of a script, or where somebody stands, is none."""
    packages = (
        path
        for path in sys.path
        if os.path.isabs(path) and (path.endswith("-packages") or os.path.isdir(os.path.join(path, "autopsy")))
    )
    tree = dict.fromkeys((sys.prefix, sys.base_prefix, *packages))
    return tuple(Path(path) for path in tree if path != "/")


def warm() -> None:
    """Make ahead what the children of this process would each make for their own sandbox."""
    seccomp.warm(truncation=landlock.version() < landlock.KNOWS_TRUNCATION)


def enter(box: Sandbox) -> Confined:
    """Confine this process for good, and all that it starts.

    Raises:
        OSError: the kernel refused what it has; whoever asked for it must do nothing with a stranger's bytes then.
    """
    lacking: list[str] = []
    _go_first()
    scratch = given = box.scratch.absolute() if box.scratch else None
    if os.geteuid() == 0 and _become_nobody_else(scratch, lacking) and scratch:
        scratch, given = INSIDE, GIVEN
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
    checked(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    reading = (*SYSTEM, NULL, *box.readable)
    abi = landlock.restrict(reading, ((scratch, NULL) if scratch else (NULL,)) + box.writable)
    if not abi:
        lacking.append("this kernel has no Landlock (5.13)")
    if not seccomp.deny(truncation=abi < landlock.KNOWS_TRUNCATION):
        lacking.append("system calls are not filtered on this architecture")
    return Confined(scratch or Path("/"), given or Path("/"), tuple(lacking))


def send_no_signal() -> None:
    """Give up signals as well: for a program that the confined one starts, and ends.

    Raises:
        OSError: the kernel refused.
    """
    seccomp.deny_signals()


def stay(readable: tuple[Path, ...]) -> None:
    """Confine this process as the user that it is, for good: it reads these files and the system's, and writes nothing.

    Root keeps the right to read what is another user's, and no other.

    Raises:
        OSError: the kernel refused what it has.
    """
    _go_first()
    if os.geteuid() == 0:
        _drop_capabilities(CAP_DAC_READ_SEARCH)
    checked(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    abi = landlock.restrict((*SYSTEM, *python_tree(), NULL, *readable), (NULL,))
    seccomp.deny(truncation=abi < landlock.KNOWS_TRUNCATION)
    seccomp.deny_signals()


def keep_no_rights(writable: tuple[Path, ...] = ()) -> None:
    """Take from this process every right of root's and every file but these folders; its sockets it goes on to use.

    Raises:
        OSError: the kernel refused what it has.
    """
    _go_first()
    if os.geteuid() == 0:
        _drop_capabilities()
    checked(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    landlock.restrict((*SYSTEM, *python_tree(), NULL), (NULL, *writable))


def _go_first() -> None:
    """Have the kernel end this process, and what it starts, before a VM, where the host's memory is used up."""
    with suppress(OSError):
        descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, GOES_FIRST)
        finally:
            os.close(descriptor)


def _become_nobody_else(scratch: Path | None, lacking: list[str]) -> bool:
    """Become a user that nobody else is, with a folder in memory to write in; the scratch folder is only read.

    Return whether that could be.
    """
    apart = CLONE_NEWIPC | (CLONE_NEWNS if scratch else 0)
    if not seccomp.knows_this_machine():
        apart |= CLONE_NEWNET  # elsewhere there is no socket to be had: the kernel is spared a network
    uid = UIDS[int.from_bytes(os.urandom(8), "little") % len(UIDS)]
    try:
        checked(_libc.unshare(apart), "unshare")
        if scratch:
            _move_in(scratch, uid)
    except OSError as error:
        lacking.append(f"no user of its own: {error.filename}: {error.strerror}")
        _drop_capabilities()
        return False
    limit(resource.RLIMIT_NPROC, MOST_PROCESSES + (os.cpu_count() or 1))
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    # The kernel forgets both where the user changes; without the second, /proc/self/fd would be root's.
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    return True


def _move_in(scratch: Path, uid: int) -> None:
    """Lay a bounded folder in memory over root's home, in this process's view alone, and what was given into it.

    Nothing that is written there is ever seen outside, and it ends with the process.
    """
    _mount(None, Path("/"), MS_REC | MS_SLAVE)  # a slave: what is unmounted outside is not held by us
    held = os.open(scratch, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        apart = MS_NOSUID | MS_NODEV
        kind = f"size={ROOM},nr_inodes={MOST_FILES},mode=0700,uid={uid},gid={uid}"
        _mount("tmpfs", INSIDE, apart | MS_NOEXEC, "tmpfs", kind)
        GIVEN.mkdir()
        os.chown(f"/proc/self/fd/{held}", -1, uid)
        os.chmod(f"/proc/self/fd/{held}", 0o750)  # noqa: S103 - for the group of that one user alone, below folders of root
        _mount(f"/proc/self/fd/{held}", GIVEN, MS_BIND)
        _mount(None, GIVEN, MS_REMOUNT | MS_BIND | MS_RDONLY | apart)
    finally:
        os.close(held)


def _mount(source: str | None, place: Path, flags: int, kind: str | None = None, data: str | None = None) -> None:
    said, where, what, options = (None if word is None else os.fsencode(word) for word in (source, place, kind, data))
    checked(_libc.mount(said, where, what, ctypes.c_ulong(flags), options), "mount")


def _drop_capabilities(*kept: int) -> None:
    """Leave root nothing but its number and these, even in what it starts."""
    for number in range(CAPABILITIES):
        if number not in kept:
            _libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    low = sum(1 << number for number in kept)  # of those below 32: effective, permitted, inheritable, then the others
    checked(_libc.capset(ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)(low, low, 0, 0, 0, 0))), "capset")


def limit(what: int, most: int) -> None:
    """Bound one of this process's resources; a narrower bound that it has already stays."""
    _, hard = resource.getrlimit(what)
    wanted = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (wanted, wanted))
