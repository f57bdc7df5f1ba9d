"""The processes that an operator's word may mean."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

from autopsy.dataclass import dataclass
from autopsy.errors import NoSuchVm, NotQemu, UsageError
from autopsy.files.plain import NotPlain
from autopsy.linux.batch import Unanswered, ask
from autopsy.linux.trouble import FailureKind
from autopsy.linux.unix_sockets import listeners_seen_by, owners_of
from autopsy.target import identity, monitors, qemu_processes
from autopsy.target.command_line import last, vm_name
from autopsy.target.platforms.catalogue import PLATFORMS, explicit, platform_of
from autopsy.target.platforms.owned import is_trusted, runs_as, started_by
from autopsy.target.platforms.platform import Roots, VmClaim
from autopsy.target.qemu_process import QemuProcess, is_qemu
from autopsy.target.tell_apart import near
from autopsy.text import printable

LIST = "`autopsy ps` lists this host's virtual machines"
MOST_PID = 1 << 22  # the kernel's own limit on pid_max

FORMS = (*dict.fromkeys(platform.form for platform in PLATFORMS if platform.form), "pid", "qmp")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A process that may be meant, the manager that claims it, and the word that means it alone.

    `hangs` when its command line did not answer: it need not be asked a second time.
    """

    pid: int
    explicit: str
    claim: VmClaim | None = None
    hangs: bool = False


def meant_by(word: str, roots: Roots) -> tuple[Candidate, ...]:
    """Return every process that a word means, in order of PID; none when it means nothing.

    Raises:
        UsageError: the word cannot be meant.
        NoSuchVm: it means one thing, and that is not there.
        NotQemu: it means one thing, and that is no QEMU.
    """
    if not word:
        raise UsageError("TARGET", "it is empty", remedy=LIST)
    form, colon, rest = word.partition(":")
    if colon and form in FORMS:
        if not rest:
            raise UsageError(word, f"nothing stands after {form}:", remedy="say for example pve:102 or pid:4242")
        return _explicit(form, rest, word, roots)
    return _bare(word, roots)


def _explicit(form: str, rest: str, word: str, roots: Roots) -> tuple[Candidate, ...]:
    if form == "pid":
        pid = _pid(rest)
        if pid is None:
            raise UsageError(word, f"{rest!r} is no process id", remedy=LIST)
        return (_claimed(pid, roots),)
    if form == "qmp":
        return tuple(_claimed(pid, roots) for pid in listening_at(rest, word))
    named = qemu_processes.suspects()
    claims = [
        claim
        for platform in PLATFORMS
        if platform.form == form
        for claim in platform.claims(named, roots)
        if platform.answers_to(claim, rest)
    ]
    processes = qemu_processes.tell([claim.pid for claim in claims])
    alive = [claim for claim in claims if is_true(claim, processes[claim.pid])]
    if not alive:
        raise _nothing(word, claims)
    return _distinct(_with_claim(claim.pid, processes[claim.pid], [claim]) for claim in alive)


def _bare(word: str, roots: Roots) -> tuple[Candidate, ...]:
    named = qemu_processes.suspects()
    claims = all_claims(named, roots)
    answering = [claim for claim in claims if platform_of(claim.manager).answers_to(claim, word)]
    processes = qemu_processes.tell(sorted({*named, *(claim.pid for claim in answering)}))
    pids = {claim.pid for claim in answering if is_true(claim, processes[claim.pid])}
    pids |= {pid for pid in named if is_qemu(processes[pid]) and _goes_by(word, processes[pid])}
    pid = _pid(word)
    if pid is not None and identity.exists(pid):
        alone = not pids
        if alone or is_qemu(processes.get(pid) or qemu_processes.tell([pid])[pid]):
            pids.add(pid)
    if not pids:
        raise _nothing(word, answering, near(word, processes, claims))
    for late in pids - processes.keys():
        processes |= qemu_processes.tell([late])
    return _distinct(_with_claim(pid, processes[pid], claims) for pid in sorted(pids))


def all_claims(pids: Sequence[int], roots: Roots) -> tuple[VmClaim, ...]:
    """Return what this host's managers claim, and what those in the containers of the given processes do."""
    return tuple(claim for platform in PLATFORMS for claim in platform.claims(pids, roots))


def _goes_by(word: str, process: QemuProcess) -> bool:
    """Return whether a command line gives the VM that name or uuid."""
    if process.options is None:
        return False
    return word in (vm_name(process.options), last(process.options, "uuid"))


def _pid(word: str) -> int | None:
    number = int(word) if word.isascii() and word.isdecimal() and len(word) < 10 else 0
    return number if 0 < number <= MOST_PID else None


def _claimed(pid: int, roots: Roots) -> Candidate:
    claims = [claim for claim in all_claims([pid], roots) if claim.pid == pid]
    return _with_claim(pid, qemu_processes.tell([pid])[pid], claims) if claims else Candidate(pid, f"pid:{pid}")


def _with_claim(pid: int, process: QemuProcess, claims: Iterable[VmClaim]) -> Candidate:
    true = next((claim for claim in claims if claim.pid == pid and is_true(claim, process)), None)
    hangs = isinstance(process.arguments, Unanswered) and process.arguments.hung
    return Candidate(pid, explicit(true) if true else f"pid:{pid}", true, hangs)


def _distinct(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Return one candidate a process, each with a word that no other has: two users may each have a libvirt `web1`."""
    by_pid = {candidate.pid: candidate for candidate in candidates}
    words = [candidate.explicit for candidate in by_pid.values()]
    return tuple(
        candidate if words.count(candidate.explicit) == 1 else replace(candidate, explicit=f"pid:{candidate.pid}")
        for _, candidate in sorted(by_pid.items())
    )


def _nothing(word: str, claims: list[VmClaim], alike: str = "") -> NoSuchVm:
    if not claims:
        remedy = f"did you mean {alike}? {LIST}" if alike else LIST
        return NoSuchVm(word, "no running virtual machine answers to it", remedy=remedy)
    dead = ", ".join(f"{claim.pidfile} names process {claim.pid}" for claim in claims)
    return NoSuchVm(word, f"it does not run: {dead}, which is not (or no longer) that VM", remedy=LIST)


def is_true(claim: VmClaim, process: QemuProcess) -> bool:
    """Return whether a manager's claim holds: the process is a QEMU, and was started as that VM.

    Where the command line could not be read, a listening socket in the place of the VM's own monitor tells as much.
    """
    if not is_qemu(process) or not has_a_say(claim):
        return False
    platform = platform_of(claim.manager)
    if isinstance(process.arguments, Unanswered):
        paths = [listener.path for listener in monitors.ears_of(claim.pid).listeners]
        return any(platform.is_its_monitor(claim, path) for path in paths)
    return platform.is_alive(claim, process)


def has_a_say(claim: VmClaim) -> bool:
    """Return whether whoever wrote the claim may speak for that process: root and we for each, others for their own."""
    if platform_of(claim.manager).runs_as_root and not is_trusted(started_by(claim.pid)):
        return False
    return claim.inside is not None or is_trusted(claim.owner) or runs_as(claim.pid, claim.owner)


def listening_at(path: str, word: str) -> tuple[int, ...]:
    """Return the QEMUs that listen on a UNIX socket, whatever mount or network namespace they live in.

    Raises:
        NotQemu: another program listens there.
        NoSuchVm: nobody does, or there is no such socket.
    """
    place = path if path.startswith("@") else os.path.abspath(path)
    pids = qemu_processes.suspects()
    (ours,) = ask([partial(_identity_of, place)], each=qemu_processes.EACH, overall=qemu_processes.EACH)
    file = None if isinstance(ours, Unanswered) else tuple(int(number) for number in ours.split())
    answers = ask(
        [partial(_listens, pid, place, file) for pid in pids],
        each=qemu_processes.EACH,
        overall=qemu_processes.OVERALL,
        owners=[started_by(pid) for pid in pids],
    )
    listening = tuple(pid for pid, answer in zip(pids, answers, strict=True) if answer == b"yes")
    if listening:
        return listening
    if isinstance(ours, Unanswered) and ours.trouble is FailureKind.NOT_PLAIN:
        raise NoSuchVm(word, "that is no socket", remedy=LIST)
    if file is None:
        raise NoSuchVm(word, f"there is no such socket, and no QEMU listens on one of that name ({place})", remedy=LIST)
    (owners,) = ask([partial(_owners, place)], each=qemu_processes.EACH, overall=qemu_processes.EACH)
    others = () if isinstance(owners, Unanswered) else tuple(int(pid) for pid in owners.split())
    if not others:
        raise NoSuchVm(word, "nobody listens on that socket", remedy=LIST)
    processes = qemu_processes.tell(others)
    if listening := tuple(pid for pid in others if is_qemu(processes[pid])):
        return listening  # a QEMU by its binary, though nothing is named so
    raise NotQemu(
        word, f"{', '.join(_described(pid) for pid in others)} listens on that socket, and is no QEMU", remedy=LIST
    )


def _identity_of(place: str) -> bytes:
    status = os.stat(place)
    if not stat.S_ISSOCK(status.st_mode):
        raise NotPlain(place)
    return b"%d %d" % (status.st_dev, status.st_ino)


def _listens(pid: int, place: str, file: tuple[int, ...] | None) -> bytes:
    for listener in monitors.ears_of(pid).listeners:
        if file is None:
            same = listener.path == place
        else:
            try:
                theirs = os.lstat(f"/proc/{pid}/root{monitors.place_of(pid, listener.path)}")
                same = (theirs.st_dev, theirs.st_ino) == file
            except OSError:
                same = False
        if same:
            return b"yes"
    return b"no"


def _owners(place: str) -> bytes:
    """Return who listens on a socket, by the path that it was bound to."""
    inodes = [listener.inode for listener in listeners_seen_by(os.getpid()) if listener.path == place]
    return b" ".join(b"%d" % pid for inode in inodes for pid in owners_of(inode))


def _described(pid: int) -> str:
    try:
        return f"{printable(identity.stat_of(f'/proc/{pid}').comm)} (pid {pid})"
    except (OSError, ValueError, IndexError):
        return f"a process that has ended (pid {pid})"
