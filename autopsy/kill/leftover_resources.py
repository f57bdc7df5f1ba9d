"""What a VM may leave behind when it is killed: processes in its cgroup, sockets, pidfiles, locks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import msgspec

from autopsy.dataclass import dataclass
from autopsy.linux.batch import Unanswered, ask
from autopsy.linux.files import read_kernel
from autopsy.target import monitors
from autopsy.target.target import Target
from autopsy.text import printable

EACH = 0.5  # seconds for one question: a cgroup that is stuck, or a file system that hangs, answers none
OVERALL = 2.0
MOST_TOLD = 8
CGROUPS = "/sys/fs/cgroup"
LOGINS = "/user.slice"  # who else is in a login's session has nothing to do with the VM


class LeftoverFile(msgspec.Struct, frozen=True):
    """A file of the VM's own. `made_by` are device and inode: another file of that name later is somebody else's."""

    kind: str
    path: str
    made_by: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Estate:
    """What was the VM's own before the kill. `group` is its cgroup as /proc/PID/cgroup names it, empty for none."""

    places: tuple[LeftoverFile, ...]
    group: str
    locks: tuple[str, ...]


def estate_of(target: Target, locks: Sequence[str] = ()) -> Estate:
    """Take note of what is the VM's own, while it still lives. `locks` are files that its manager locks it by."""
    pid = target.pid
    answers = ask([partial(_sockets, pid), partial(_pidfile, target), partial(_group, pid)], each=EACH, overall=OVERALL)
    sockets, pidfile, group = (b"" if isinstance(answer, Unanswered) else answer for answer in answers)
    places = [place for raw in (sockets, pidfile) if raw for place in msgspec.json.decode(raw, type=list[LeftoverFile])]
    return Estate(tuple(places), group.decode(), tuple(locks))


def left_by(estate: Estate) -> tuple[str, ...]:
    """Return what is still there after the kill, each in a few words; what cannot be looked at is left out."""
    questions: list[Callable[[], bytes]] = [partial(_still, place) for place in estate.places]
    questions += [partial(_lock, path) for path in estate.locks]
    if _is_its_own(estate.group):
        questions.append(partial(_members, estate.group))
    answers = ask(questions, each=EACH, overall=OVERALL)
    return tuple(answer.decode() for answer in answers if not isinstance(answer, Unanswered) and answer)


def _sockets(pid: int) -> bytes:
    ears = monitors.ears_of(pid)
    paths = (listener.path for listener in ears.listeners if listener.path and not listener.path.startswith("@"))
    return msgspec.json.encode(list(_places(pid, "socket", paths)))


def _pidfile(target: Target) -> bytes:
    path = target.process.option("pidfile")
    return msgspec.json.encode(list(_places(target.pid, "pidfile", (path,) if path else ())))


def _places(pid: int, kind: str, paths: Iterable[str]) -> Iterator[LeftoverFile]:
    """Yield those of the paths that lie in our own tree too; a container's go with it."""
    for path in paths:
        try:
            place = monitors.place_of(pid, path)
            theirs = os.stat(f"/proc/{pid}/root{place}")
            ours = os.stat(place)
        except OSError:
            continue
        if (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino):
            yield LeftoverFile(kind, place, (ours.st_dev, ours.st_ino))


def _still(place: LeftoverFile) -> bytes:
    try:
        status = os.lstat(place.path)
    except OSError:
        return b""
    return f"{place.kind} {printable(place.path)}".encode() if (status.st_dev, status.st_ino) == place.made_by else b""


def _lock(path: str) -> bytes:
    """Tell of a lock file that a process holds (fcntl(2) or flock(2)), by the kernel's own table."""
    try:
        status = os.stat(path)
    except OSError:
        return b""
    mark = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for line in read_kernel("/proc/locks").decode("ascii", "replace").splitlines():
        fields = line.split()
        if len(fields) > 5 and fields[1] != "->" and fields[5] == mark:
            return f"lock {printable(path)}, held by process {fields[4]}".encode()
    return b""


def _group(pid: int) -> bytes:
    """Return the group in the unified hierarchy, or where there is only the older kind, systemd's own."""
    lines = read_kernel(f"/proc/{pid}/cgroup").decode("utf-8", "replace").splitlines()
    groups = {line.split(":", 2)[1]: line.split(":", 2)[2] for line in lines if line.count(":") > 1}
    unified, named = groups.get("", "/"), groups.get("name=systemd", "/")
    group = unified if unified != "/" else named
    # libvirt's threads are in groups of their own below the scope: the scope is the VM.
    scope, dot, _ = group.partition(".scope")
    return (scope + dot).encode()


def _is_its_own(group: str) -> bool:
    return group not in {"", "/", "/init.scope"} and not group.startswith(LOGINS) and not group.endswith(".slice")


def _members(group: str) -> bytes:
    """Tell of processes that are still in the group or below it."""
    folder = next((home for home in _homes(group) if os.path.isdir(home)), "")
    if not folder:
        return b""  # it went with its last process
    pids: set[int] = set()
    for place, _, files in os.walk(folder):
        if "cgroup.procs" in files:
            pids.update(int(pid) for pid in read_kernel(f"{place}/cgroup.procs").split())
    members = ", ".join(f"{pid} ({_comm(pid)})" for pid in sorted(pids - {0})[:MOST_TOLD])
    more = f" and {len(pids) - MOST_TOLD} more" if len(pids) > MOST_TOLD else ""
    return f"in its cgroup {printable(group)} still run {members}{more}".encode() if members else b""


def _homes(group: str) -> Iterator[str]:
    for mount in ("", "/unified", "/systemd"):
        yield f"{CGROUPS}{mount}{group}"


def _comm(pid: int) -> str:
    try:
        return printable(read_kernel(f"/proc/{pid}/comm", 64).strip())
    except OSError:
        return "ended"
