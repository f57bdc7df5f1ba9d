"""Questions that many signatures put to the facts: which requests and threads stand still, and whose they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from autopsy.bundle import names
from autopsy.diagnose import flow, naming
from autopsy.diagnose.diagnosis import Confidence
from autopsy.facts import subjects
from autopsy.facts.cite import Cite, Fact, Known, Unknown
from autopsy.facts.model import CoroutineFact, Descriptor, Disk, Exposure, Facts, Park, Role, Thread
from autopsy.facts.requests import can_wait
from autopsy.facts.subjects import Subject, Whole

# A thread that sleeps in the kernel without being able to be stopped gains no switch from our capture.
FEW_SWITCHES = 2
LITTLE_NS = 1_000_000
LONG_IDLE_NS = 3_000_000_000
# No request is met at these places in passing.
NOT_IN_PASSING = frozenset({Park.BLKDEBUG, Park.THROTTLE_LOCK, Park.NBD_CONNECT})
# The largest request that QEMU makes of a guest's, and a few of the smallest: a limit never has to hold more at once.
AT_ONCE = {"bytes": 32 << 20, "requests": 16}
MOST_CITES = 6
MOST_NAMES = 6


@dataclass(frozen=True, slots=True)
class Standing:
    """The requests that wait at some places. `moving` came from there or go on; `proven` needs two exposures."""

    requests: tuple[CoroutineFact, ...]
    moving: tuple[CoroutineFact, ...]
    proven: bool

    @property
    def cites(self) -> tuple[Cite, ...]:
        """Return where the first few are written."""
        return tuple(each.cite for each in self.requests[:MOST_CITES])


def standing(facts: Facts, parks: Iterable[Park]) -> Standing | Unknown:
    """Return the requests parked at these places that nothing shows to go on."""
    if isinstance(facts.coroutines, Unknown):
        return facts.coroutines
    wanted = frozenset(parks)
    here = [each for each in facts.coroutines.value if each.park in wanted]
    goes_on = [(each, moves(facts, each)) for each in here]
    moving = tuple(each for each, on in goes_on if on)
    waiting = tuple(each for each, on in goes_on if not on)
    undecided = {each.address for each, on in goes_on if on is None}
    proven = any(isinstance(each.stuck, Known) and each.stuck.value for each in waiting)
    sure = tuple(
        each
        for each in waiting
        if each.address not in undecided and (isinstance(each.stuck, Known) or _seems_still(facts, each))
    )
    if waiting and not sure:
        words = f"{count(len(waiting), 'request')} waited there at the only look, as on any busy VM"
        if any(isinstance(each.stuck, Known) for each in waiting):
            words = f"whether {count(len(waiting), 'request')} that stood there were passed by others like them"
        return Unknown(names.evidence(names.SECOND_EXPOSURE, names.COROUTINES), words)
    return Standing(sure, moving, proven)


def _seems_still(facts: Facts, coroutine: CoroutineFact) -> bool:
    """Tell whether one look is enough: other requests of its disk ended long ago, or the monitor is dead."""
    if coroutine.park in NOT_IN_PASSING:
        return True
    if monitor_is_dead(facts):
        return True
    idle = [disk.stats.value.idle_ns for disk in disks_of(facts, coroutine) if isinstance(disk.stats, Known)]
    return bool(idle) and all(each is not None and each > LONG_IDLE_NS for each in idle)


def moves(facts: Facts, coroutine: CoroutineFact) -> bool | None:
    """Tell whether a request goes on: it left its place, or its disk completed such as it while it was looked at.

    On a busy disk a new request stands where the last one stood, at the same address with the same registers: only
    the counters tell the two apart. None where they could, and too little of them is known.
    """
    if isinstance(coroutine.stuck, Known) and not coroutine.stuck.value:
        return True
    said = [flow.speaks_for(facts, disk, coroutine) for disk in disks_of(facts, coroutine)]
    if not said or False in said:
        return False
    return None if None in said else True


def disks_of(facts: Facts, coroutine: CoroutineFact) -> tuple[Disk, ...]:
    """Return the disk whose request it is, or all those that it could be of."""
    if isinstance(facts.disks, Unknown):
        return ()
    if isinstance(coroutine.disk, Known):
        return tuple(disk for disk in facts.disks.value if disk.name == coroutine.disk.value)
    possible = [disk for disk in facts.disks.value if disk.inserted and can_wait(disk, coroutine.park)]
    if isinstance(coroutine.stuck, Known) and coroutine.stuck.value:
        still = [disk for disk in possible if not (isinstance(disk.completed, Known) and disk.completed.value > 0)]
        possible = still or possible
    return tuple(possible)


def their_disks(facts: Facts, requests: Iterable[CoroutineFact]) -> tuple[subjects.Disk, ...]:
    """Return the disks that these requests belong to, those with most requests first.

    Where a request could be of several disks and nothing tells which, none is named.
    """
    counted: Counter[subjects.Disk] = Counter()
    for request in requests:
        disks = disks_of(facts, request)
        if len(disks) == 1:
            counted[subjects.disk(disks[0])] += 1
    return tuple(disk for disk, _ in counted.most_common())


def title(disk: Disk) -> str:
    """Return a disk's name, with the drive's beside it where that is another."""
    return naming.name(subjects.disk(disk))


def of_disks(disks: tuple[subjects.Disk, ...]) -> str:
    """Say whose requests they are."""
    if not disks:
        return "of a disk that cannot be named"
    more = f" and {len(disks) - MOST_NAMES} more" if len(disks) > MOST_NAMES else ""
    return f"of {'disk' if len(disks) == 1 else 'disks'} {disk_names(disks[:MOST_NAMES])}{more}"


def disk_names(disks: Iterable[subjects.Disk]) -> str:
    """Return the names of disks, with commas between them."""
    return ", ".join(naming.name(disk) for disk in disks)


def count(number: int, one: str, many: str = "") -> str:
    """Say a number with its noun."""
    return f"{number} {one}" if number == 1 else f"{number} {many or one + 's'}"


def lets_go(rate: int, unit: Literal["bytes", "requests"], seconds: float) -> bool:
    """Tell whether a limit, a second, lets any request go within the time that was watched."""
    return rate * seconds >= AT_ONCE[unit]


def confidence(*, proven: bool, otherwise: Confidence = "likely") -> Confidence:
    """Return `proven` only for what was seen in both exposures."""
    return "proven" if proven else otherwise


def disk_subjects(facts: Facts, requests: Iterable[CoroutineFact]) -> frozenset[Subject | Whole]:
    """Return the disks that these requests hold up, and all those that they could be of where that is not known."""
    return frozenset(subjects.disk(disk) for request in requests for disk in disks_of(facts, request))


def threads(facts: Facts) -> tuple[Thread, ...]:
    """Return the threads, none where they are unknown."""
    return facts.threads.value if isinstance(facts.threads, Known) else ()


def looks(thread: Thread) -> tuple[Exposure, ...]:
    """Return what is known of a thread, earliest first."""
    return tuple(each.value for each in (thread.first, thread.again) if isinstance(each, Known))


def same_sleep(thread: Thread) -> Fact[bool]:
    """Tell whether a thread slept through from the first look to the last, in one and the same system call."""
    if isinstance(thread.first, Unknown):
        return thread.first
    if isinstance(thread.again, Unknown):
        return thread.again
    if isinstance(thread.movement, Unknown):
        return thread.movement
    first, again = thread.first.value, thread.again.value
    same = first.syscall.is_like(again.syscall) or not (first.syscall.name and again.syscall.name)
    if first.kernel_stack and again.kernel_stack:
        # A stop changes the way into the call, and not where the thread sleeps in it.
        deep = 1 if first.syscall.restarted or again.syscall.restarted else None
        same = same and first.kernel_stack[:deep] == again.kernel_stack[:deep]
    elif first.wchan and again.wchan:
        same = same and first.wchan == again.wchan
    moved = thread.movement.value
    switches = moved.voluntary_switches
    same = same and (moved.cpu_ns < LITTLE_NS if switches is None else switches <= FEW_SWITCHES)
    return Known(same, again.cite)


def slept_through(thread: Thread) -> bool | None:
    """Tell whether a thread slept through from the first look to the last; None where it cannot be told."""
    same = same_sleep(thread)
    return same.value if isinstance(same, Known) else None


def by_role(facts: Facts, *roles: Role) -> tuple[Thread, ...]:
    """Return the threads of some roles."""
    return tuple(thread for thread in threads(facts) if thread.role in roles)


def named(thread: Thread) -> str:
    """Return a thread as people speak of it."""
    return naming.name(subjects.thread(thread))


def monitor_is_dead(facts: Facts) -> bool:
    """Tell whether QEMU is known to have left a question unanswered."""
    return isinstance(facts.monitor.alive, Known) and not facts.monitor.alive.value


def descriptor(facts: Facts, fd: int) -> Descriptor | None:
    """Return an open descriptor by its number, None where it is not known."""
    if isinstance(facts.descriptors, Unknown):
        return None
    return next((each for each in facts.descriptors.value if each.fd == fd), None)


def owns_bql(facts: Facts, tid: int) -> bool:
    """Tell whether a thread is known to hold the BQL."""
    owner = facts.locks.value.bql_owner if isinstance(facts.locks, Known) else None
    return isinstance(owner, Known) and owner.value == tid and tid != 0


def main_tid(facts: Facts) -> int:
    """Return the main thread's id: the process's own."""
    return facts.vm.pid


def blocks_main_loop(facts: Facts, tids: Iterable[int]) -> bool:
    """Tell whether one of these threads is the main thread, or holds the BQL that it needs."""
    return any(tid == main_tid(facts) or owns_bql(facts, tid) for tid in tids)


def still(facts: Facts, *parks: Park) -> tuple[CoroutineFact, ...]:
    """Return the requests that stand at these places, none where the coroutines are unknown."""
    found = standing(facts, parks)
    return found.requests if isinstance(found, Standing) else ()


def thread_subjects(facts: Facts, tids: Iterable[int]) -> frozenset[Subject | Whole]:
    """Return what blocked threads hold up: themselves, and the main loop or an iothread where they are that."""
    blocked = set(tids)
    roles = {thread.role for thread in threads(facts) if thread.tid in blocked}
    held: set[Subject | Whole] = {subjects.Thread(tid) for tid in blocked}
    if blocks_main_loop(facts, blocked):
        held.add(Whole.MAIN_LOOP)
    if Role.IOTHREAD in roles:
        held.add(Whole.IOTHREAD)
    return frozenset(held)


def known(fact: Fact[str]) -> str:
    """Return a text fact, empty where it is unknown."""
    return fact.value if isinstance(fact, Known) else ""


def functions(thread: Thread) -> tuple[str, ...]:
    """Return the names of a thread's frames, innermost first."""
    return tuple(frame.function for frame in thread.frames.value) if isinstance(thread.frames, Known) else ()


def missing(unknown: Unknown) -> str:
    """Say which evidence is missing and why."""
    return f"{unknown.evidence} ({unknown.why})"


def sentence(words: str) -> str:
    """Return words with a capital letter at their beginning."""
    return words[:1].upper() + words[1:]


def went_on(found: Standing) -> str:
    """Say how it is known of requests that they go on."""
    stood = any(isinstance(each.stuck, Known) and each.stuck.value for each in found.moving)
    return "their disk completed others like them meanwhile" if stood else "they went on"
