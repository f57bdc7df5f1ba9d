"""Questions that many signatures put to the facts: which requests and threads stand still, and whose they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Literal

from autopsy.bundle import layout
from autopsy.dataclass import dataclass
from autopsy.diagnose.diagnosis import Confidence
from autopsy.diagnose.once import once
from autopsy.diagnose.queries import naming, progress
from autopsy.diagnose.queries.wording import count
from autopsy.facts import subjects
from autopsy.facts.cite import Cite, Known, Unknown
from autopsy.facts.model.facts import CoroutineFact, DiskFact, Facts, Node, Origin, Park
from autopsy.facts.model.yield_points import THROTTLED
from autopsy.facts.storage.requests import may_be_of
from autopsy.facts.subjects import Subject

LONG_IDLE_NS = 3_000_000_000
# No request is met at these places in passing.
NOT_IN_PASSING = frozenset({Park.BLKDEBUG, Park.THROTTLE_LOCK, Park.NBD_CONNECT})
# The largest request that QEMU makes of a guest's, and a few of the smallest: a limit never has to hold more at once.
AT_ONCE = {"bytes": 32 << 20, "requests": 16}
# Drivers that do a request by themselves: one that stands in them waits for nobody else.
NOBODY_ELSE = frozenset({"null-co", "null-aio", "vvfat"})
AT_LEAST = "at least "
MOST_CITES = 6
MOST_NAMES = 6


@dataclass(frozen=True, slots=True)
class Standing:
    """The requests that wait at some places. `moving` came from there or go on; `proven` needs two snapshots.

    Not `whole`: a limit of ours kept some out of the evidence.
    """

    requests: tuple[CoroutineFact, ...]
    moving: tuple[CoroutineFact, ...]
    proven: bool
    whole: bool = True

    @property
    def cites(self) -> tuple[Cite, ...]:
        """Return where the first few are written."""
        return tuple(request.cite for request in self.requests[:MOST_CITES])

    def counted(self, one: str = "request") -> str:
        """Say how many there are, and that there may be more."""
        return f"{'' if self.whole else AT_LEAST}{count(len(self.requests), one)}"


def standing(facts: Facts, parks: Iterable[Park]) -> Standing | Unknown:
    """Return the requests parked at these places that nothing shows to go on."""
    return _standing(facts, frozenset(parks))


@once
def _standing(facts: Facts, wanted: frozenset[Park]) -> Standing | Unknown:
    if isinstance(facts.coroutines, Unknown):
        return facts.coroutines
    by_park = _parked_at(facts)
    here = by_park.keys() & wanted
    if not here:
        return _none(facts)
    goes_on = [entry for park in here for entry in by_park[park]]
    goes_on.sort(key=lambda entry: entry[2])
    moving = tuple(request for request, on, _ in goes_on if on)
    waiting = tuple(request for request, on, _ in goes_on if not on)
    undecided = {request.address for request, on, _ in goes_on if on is None}
    proven = any(_stood(request) and not passed(facts, request) for request in waiting)
    proven &= all_counted(facts)  # a number that is one at least proves nothing
    sure = tuple(
        request
        for request in waiting
        if request.address not in undecided and (isinstance(request.stuck, Known) or _seems_still(facts, request))
    )
    if waiting and not sure:
        words = f"{count(len(waiting), 'request')} waited there at the only look, as on any busy VM"
        if any(isinstance(request.stuck, Known) for request in waiting):
            words = f"whether {count(len(waiting), 'request')} that stood there were passed by others like them"
        return Unknown(layout.evidence(layout.SECOND_EXPOSURE, layout.COROUTINES), words)
    return Standing(sure, moving, proven, all_counted(facts))


@once
def _none(facts: Facts) -> Standing:
    return Standing((), (), proven=False, whole=all_counted(facts))


@once
def _parked_at(facts: Facts) -> dict[Park, list[tuple[CoroutineFact, bool | None, int]]]:
    """Return the coroutines by where they are parked, each with whether it goes on and its place among all."""
    by_park: dict[Park, list[tuple[CoroutineFact, bool | None, int]]] = {}
    for place, coroutine in enumerate(facts.coroutines.value if isinstance(facts.coroutines, Known) else ()):
        by_park.setdefault(coroutine.park, []).append((coroutine, moves(facts, coroutine), place))
    return by_park


def parked_still(facts: Facts, parks: frozenset[Park]) -> Iterator[CoroutineFact]:
    """Yield the coroutines parked at these places that nothing shows to go on, in the order in which they were read."""
    here = [entry for park in _parked_at(facts).keys() & parks for entry in _parked_at(facts)[park]]
    here.sort(key=lambda entry: entry[2])
    yield from (coroutine for coroutine, on, _ in here if not on)


def all_counted(facts: Facts) -> bool:
    """Tell whether no limit of ours kept requests out of the evidence."""
    return not any(omission.requests for omission in facts.left_out)


def counted(facts: Facts, requests: tuple[CoroutineFact, ...]) -> str:
    """Say how many requests these are, and that there may be more where a limit of ours kept some out."""
    return f"{'' if all_counted(facts) else AT_LEAST}{count(len(requests), 'request')}"


def _seems_still(facts: Facts, coroutine: CoroutineFact) -> bool:
    """Tell whether one look is enough: other requests of its disk ended long ago, or the monitor is dead."""
    if coroutine.park in NOT_IN_PASSING:
        return True
    if monitor_is_dead(facts) or facts.origin is not Origin.CAPTURE:  # nobody takes a core of a VM that goes on
        return True
    idle = [disk.stats.value.idle_ns for disk in disks_of(facts, coroutine) if isinstance(disk.stats, Known)]
    return bool(idle) and all(idle_ns is not None and idle_ns > LONG_IDLE_NS for idle_ns in idle)


def moves(facts: Facts, coroutine: CoroutineFact) -> bool | None:
    """Tell whether a request goes on: it left its place, or its disk completed such as it while it was looked at.

    On a busy disk a new request stands where the last one stood, at the same address with the same registers: only
    the counters tell the two apart. None where they could, and too little of them is known. A disk that is hardly ever
    busy excuses none that was met twice.
    """
    if isinstance(coroutine.stuck, Known) and not coroutine.stuck.value:
        return True
    disks = disks_of(facts, coroutine)
    said = [progress.speaks_for(facts, disk, coroutine) for disk in disks]
    if not said or False in said:
        return False
    if None in said:
        return None
    return not (_stood(coroutine) and all(progress.is_seldom_busy(facts, disk) for disk in disks))


def passed(facts: Facts, coroutine: CoroutineFact) -> bool:
    """Tell whether only its disk's counters say that a request goes on: nobody saw it leave its place.

    Where it stood at both looks, with all that is on its stack, it is one that was forgotten if its disk is hardly ever
    busy, and may be one after another on any other.
    """
    if isinstance(coroutine.stuck, Known) and not (coroutine.stuck.value or coroutine.same_request):
        return False
    disks = disks_of(facts, coroutine)
    return bool(disks) and all(progress.speaks_for(facts, disk, coroutine) for disk in disks)


def _stood(coroutine: CoroutineFact) -> bool:
    return isinstance(coroutine.stuck, Known) and coroutine.stuck.value


def disks_of(facts: Facts, coroutine: CoroutineFact) -> tuple[DiskFact, ...]:
    """Return the disk whose request it is, or all those that it could be of."""
    owners = _owners(facts).get(id(coroutine))
    return _disks_of(facts, coroutine) if owners is None else owners


@once
def _owners(facts: Facts) -> dict[int, tuple[DiskFact, ...]]:
    """Return them by the identity of each request: dozens of signatures ask, and most are alike."""
    alike: dict[tuple[Park, bool, bool, bool, str | None], tuple[DiskFact, ...]] = {}
    owners = {}
    for coroutine in facts.coroutines.value if isinstance(facts.coroutines, Known) else ():
        stands = isinstance(coroutine.stuck, Known) and coroutine.stuck.value
        disk = coroutine.disk.value if isinstance(coroutine.disk, Known) else None
        kind = (coroutine.park, coroutine.of_job, coroutine.by_mirror, stands, disk)
        if kind not in alike:
            alike[kind] = _disks_of(facts, coroutine)
        owners[id(coroutine)] = alike[kind]
    return owners


def _disks_of(facts: Facts, coroutine: CoroutineFact) -> tuple[DiskFact, ...]:
    if isinstance(facts.disks, Unknown) or coroutine.of_job:
        return ()
    if isinstance(coroutine.disk, Known):
        return tuple(disk for disk in facts.disks.value if disk.name == coroutine.disk.value)
    possible = [disk for disk in facts.disks.value if disk.inserted and may_be_of(disk, coroutine)]
    if isinstance(coroutine.stuck, Known) and coroutine.stuck.value:
        # A queue at a limit lets one go now and then, and the others stand: only what went far past them tells.
        most = _parked_there(facts) if coroutine.park in THROTTLED else 0
        still = [disk for disk in possible if not (isinstance(disk.completed, Known) and disk.completed.value > most)]
        if coroutine.park in THROTTLED:
            groups = {disk.throttle_group.value for disk in still if isinstance(disk.throttle_group, Known)} - {""}
            still = [disk for disk in possible if disk in still or _is_in(disk, groups)]
        possible = still or possible
    return tuple(possible)


@once
def _parked_there(facts: Facts) -> int:
    coroutines = facts.coroutines.value if isinstance(facts.coroutines, Known) else ()
    return sum(coroutine.park in THROTTLED for coroutine in coroutines)


def _is_in(disk: DiskFact, groups: set[str]) -> bool:
    return isinstance(disk.throttle_group, Known) and disk.throttle_group.value in groups


def their_disks(facts: Facts, requests: Iterable[CoroutineFact]) -> tuple[subjects.Volume, ...]:
    """Return the disks that these requests belong to, those with most requests first.

    Where a request could be of several disks and nothing tells which, none is named.
    """
    alone = [disks[0] for request in requests if len(disks := disks_of(facts, request)) == 1]
    by_identity = {id(disk): disk for disk in alone}  # to make a name for each of hundreds costs more than to count
    counted = Counter(map(id, alone))
    return tuple(dict.fromkeys(subjects.disk(by_identity[known]) for known, _ in counted.most_common()))


def title(disk: DiskFact) -> str:
    """Return a disk's name, with the drive's beside it where that is another."""
    return naming.name(subjects.disk(disk))


def called(disk: DiskFact) -> str:
    """Return a disk's or an export's name with what it is before it."""
    return title(disk) if disk.is_export else f"disk {title(disk)}"


NAMELESS = "of a disk that cannot be named"


def of_disks(disks: tuple[subjects.Volume, ...]) -> str:
    """Say whose requests they are."""
    if not disks:
        return NAMELESS
    more = f" and {len(disks) - MOST_NAMES} more" if len(disks) > MOST_NAMES else ""
    exports = any(isinstance(disk, subjects.Export) for disk in disks)  # each name says so
    kind = "" if exports else "disk " if len(disks) == 1 else "disks "
    return f"of {kind}{disk_names(disks[:MOST_NAMES])}{more}"


def last_driver(facts: Facts, request: CoroutineFact) -> Node | None:
    """Return the driver at the end of a request's way, None unless it is known, alone, and asks nobody for its work."""
    ends = {node.name: node for disk in disks_of(facts, request) for node in disk.nodes if not node.children}
    if len(ends) != 1:
        return None
    node = next(iter(ends.values()))
    return node if node.driver in NOBODY_ELSE else None


def job_of(facts: Facts, requests: Iterable[CoroutineFact]) -> tuple[subjects.Job, ...]:
    """Return the job that requests belong to which are no disk's, where there is only one that it could be."""
    requests = tuple(requests)
    if isinstance(facts.jobs, Unknown) or any(request.by_mirror or disks_of(facts, request) for request in requests):
        return ()
    busy = [job for job in facts.jobs.value if not job.paused]
    return (subjects.Job(busy[0].id),) if len(busy) == 1 else ()


def of_owners(facts: Facts, requests: Iterable[CoroutineFact], disks: tuple[subjects.Volume, ...]) -> str:
    """Say whose requests they are, where they may be a job's own."""
    if jobs := job_of(facts, requests):
        return f"of {', '.join(map(naming.name, jobs))}"
    if disks or not isinstance(facts.disks, Known) or any(disks_of(facts, request) for request in requests):
        return of_disks(disks)
    return "of a mirror" if still(facts, Park.MIRROR) else "of no known disk (perhaps a job's)"


def disk_names(disks: Iterable[subjects.Volume]) -> str:
    """Return the names of disks, with commas between them."""
    return ", ".join(naming.name(disk) for disk in disks)


def lets_go(rate: int, unit: Literal["bytes", "requests"], seconds: float) -> bool:
    """Tell whether a limit, a second, lets any request go within the time that was watched."""
    return rate * seconds >= AT_ONCE[unit]


def confidence(*, proven: bool, otherwise: Confidence = "likely") -> Confidence:
    """Return `proven` only for what was seen in both snapshots."""
    return "proven" if proven else otherwise


def disk_subjects(facts: Facts, requests: Iterable[CoroutineFact]) -> frozenset[Subject]:
    """Return the disks that these requests hold up, and all those that they could be of where that is not known."""
    return frozenset(subjects.disk(disk) for request in requests for disk in disks_of(facts, request))


def monitor_is_dead(facts: Facts) -> bool:
    """Tell whether QEMU is known to have left a question unanswered."""
    return isinstance(facts.monitor.alive, Known) and not facts.monitor.alive.value


def still(facts: Facts, *parks: Park) -> tuple[CoroutineFact, ...]:
    """Return the requests that stand at these places, none where the coroutines are unknown."""
    waiting = standing(facts, parks)
    return waiting.requests if isinstance(waiting, Standing) else ()


def stand(
    parks: Iterable[Park], requests: Iterable[CoroutineFact], more: Iterable[Subject] = ()
) -> tuple[Subject, ...]:
    """Return what the graph of waits knows of requests: themselves, and their places where nothing more is known."""
    return (*map(subjects.Place, parks), *(subjects.Request(request.address) for request in requests), *more)


def went_on(waiting: Standing) -> str:
    """Say how it is known of requests that they go on."""
    stood = any(isinstance(request.stuck, Known) and request.stuck.value for request in waiting.moving)
    return "their disk completed others like them meanwhile" if stood else "they went on"
