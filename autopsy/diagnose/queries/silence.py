"""How long a disk has completed nothing, whether its own past explains that, and how slow one is that goes on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from autopsy.bundle.syscalls import SLEEP_CALLS
from autopsy.dataclass import dataclass
from autopsy.diagnose.diagnosis import Claim
from autopsy.diagnose.once import once
from autopsy.diagnose.queries import naming
from autopsy.diagnose.queries.limits.at_limits import copies_held, seconds_for
from autopsy.diagnose.queries.progress import is_seldom_busy
from autopsy.diagnose.queries.requests import disks_of, job_of, moves, title
from autopsy.diagnose.queries.threads import by_role, looks
from autopsy.diagnose.queries.wording import count
from autopsy.diagnose.signature import claim
from autopsy.facts.cite import Cite, Known, Unknown
from autopsy.facts.model.facts import CoroutineFact, DiskFact, Facts, Park, Role
from autopsy.facts.model.yield_points import DISK_PARKS

SECOND = 1_000_000_000
# Storage that answers is met to take so long for one request, or so many times what it took on the average.
PATIENCE_NS, TIMES = 30 * SECOND, 20
SLOW_MIGRATION = 1 << 20  # bytes a second: no network that is meant for it is slower
LONG_NS = SECOND // 2  # what a request to a local disk takes when something is wrong with it, and never else
SLOW_EXPORT = 2.0  # seconds for all that wait at an export's limit: a client waits as long for the last of them
SLOW_SECONDS = 10.0  # what a new request may have to wait before a disk is called slow


@dataclass(frozen=True, slots=True)
class Silence:
    """How long ago a disk's last request ended, and how long one took on the average, in ns."""

    idle_ns: int
    mean_ns: int
    cite: Cite

    @property
    def beyond_its_past(self) -> bool:
        """Tell whether it lasts longer than what this disk ever did explains."""
        return self.idle_ns > max(PATIENCE_NS, TIMES * self.mean_ns)


def silence_of(disk: DiskFact) -> Silence | None:
    """Return how long a disk was silent at the last look; None where it completed something, or nobody counted."""
    if isinstance(disk.completed, Known) and disk.completed.value > 0:
        return None
    for stats in (disk.stats_again, disk.stats):
        if isinstance(stats, Known) and stats.value.idle_ns is not None:
            return Silence(stats.value.idle_ns, stats.value.mean_ns, stats.cite)
    return None


def beyond_their_past(disks: Iterable[DiskFact]) -> bool:
    """Tell whether each of these disks has been silent for longer than its past explains."""
    silences = [silence_of(disk) for disk in disks]
    return bool(silences) and all(silence is not None and silence.beyond_its_past for silence in silences)


def seconds(nanoseconds: int) -> str:
    """Say a time as people do."""
    number = nanoseconds / SECOND
    if number < 120:
        return f"{number:.1f} s"
    return f"{number / 3600:.1f} h" if number > 7200 else f"{number / 60:.0f} min"


def about_silence(disk: DiskFact) -> str:
    """Say since when a disk is silent, empty where nobody counted."""
    silence = silence_of(disk)
    if silence is None:
        return ""
    usual = f"; a request took {seconds(silence.mean_ns)} on the average" if silence.mean_ns else ""
    return f"its last request ended {seconds(silence.idle_ns)} before the last look{usual}"


def slow(facts: Facts) -> Iterator[Claim]:
    """Tell of a migration, of vCPUs and of each disk that go on, and are slow."""
    yield from _slow_migration(facts)
    yield from _slowed_vcpus(facts)
    yield from _slow_disks(facts)
    yield from _slow_at_limits(facts)


@once
def overtaken(facts: Facts) -> tuple[Claim, ...]:
    """Tell of each request that was in flight at both looks while others of its disk came, took no time, and went.

    Only of a disk that is hardly ever busy: on any other it may be one request after another, each like the last.
    """
    claims = []
    for request in facts.coroutines.value if isinstance(facts.coroutines, Known) else ():
        disks = disks_of(facts, request) if request.same_request and request.park in DISK_PARKS else ()
        if len(disks) == 1 and is_seldom_busy(facts, disks[0]) and isinstance(disks[0].completed, Known):
            others = count(disks[0].completed.value, "other")
            words = f"{facts.times.gap_seconds:.1f} s apart, while {others} came and ended"
            claims.append(
                claim(f"a request of disk {title(disks[0])} was in flight at both looks, {words}", request.cite)
            )
    return tuple(claims)


def _slow_migration(facts: Facts) -> Iterator[Claim]:
    if isinstance(facts.migration_pace, Unknown):
        return
    pace = facts.migration_pace.value
    rate = pace.sent / pace.seconds
    if not 0 < rate < SLOW_MIGRATION or pace.remaining / rate < SLOW_SECONDS:
        return
    yield claim(
        f"the migration is slow: it sent {pace.sent >> 10} KiB in {pace.seconds:.1f} s ({rate / 1024:.0f} KiB/s), and "
        f"{pace.remaining >> 10} KiB remained",
        facts.migration_pace.cite,
    )


def _slowed_vcpus(facts: Facts) -> Iterator[Claim]:
    """Tell of vCPUs that QEMU itself had sleep for a time: nobody else has one sleep in its own thread."""
    asleep = [
        thread
        for thread in by_role(facts, Role.VCPU)
        if all(look.syscall.name in SLEEP_CALLS for look in looks(thread)) and looks(thread)
    ]
    if asleep:
        words = f"{count(len(asleep), 'vCPU')} slept by a timer of QEMU's at every look, as a dirty limit has them"
        yield claim(words, *(look.cite for thread in asleep[:4] for look in looks(thread)))


def _long_requests(disk: DiskFact, limit: str) -> Iterator[Claim]:
    """Tell of a disk whose requests took long between the looks, on the average of all that ended then."""
    if not (isinstance(disk.stats, Known) and isinstance(disk.stats_again, Known)):
        return
    before, after = disk.stats.value, disk.stats_again.value
    done = after.completed - before.completed
    if done <= 0 or (mean := (after.total_ns - before.total_ns) // done) < LONG_NS:
        return
    words = f"each of the {count(done, 'request')} that ended took {seconds(mean)} on average"
    yield claim(f"disk {title(disk)} is slow{limit}: {words}", disk.stats_again.cite)


def _slow_at_limits(facts: Facts) -> Iterator[Claim]:
    """Tell of what no counter shows to be slow: a job's copies behind a limit, and an export's requests."""
    groups = facts.throttle_groups.value if isinstance(facts.throttle_groups, Known) else ()
    if copies := copies_held(facts):
        jobs = ", ".join(map(naming.name, job_of(facts, copies))) or "a job"
        yield claim(
            f"{count(len(copies), 'request')} of {jobs} wait for QEMU's own I/O limit while the guest's disks work",
            *(request.cite for request in copies[:4]),
        )
    parked = facts.coroutines.value if isinstance(facts.coroutines, Known) else ()
    waiting = [request for request in parked if request.park is Park.THROTTLE]
    for group in groups:
        mine = [request for request in waiting if _is_of_export(facts, request, group.name)]
        seconds_left = seconds_for(group, len(mine))
        if seconds_left is not None and seconds_left >= SLOW_EXPORT:
            yield claim(
                f"{count(len(mine), 'request')} of an export waited at QEMU's own limit (group {group.name}), which "
                f"takes about {seconds_left:.0f} s to let them go",
                group.cite,
                *(request.cite for request in mine[:2]),
            )


def _is_of_export(facts: Facts, request: CoroutineFact, group: str) -> bool:
    owners = disks_of(facts, request)
    return bool(owners) and all(
        disk.is_export and isinstance(disk.throttle_group, Known) and disk.throttle_group.value == group
        for disk in owners
    )


def _slow_disks(facts: Facts) -> Iterator[Claim]:
    """Tell of each disk that goes on and is slow: a new request would have to wait long for those before it."""
    waiting: dict[str, list[Park]] = {}
    limited: set[str] = set()
    for request in facts.coroutines.value if isinstance(facts.coroutines, Known) else ():
        owners = disks_of(facts, request)
        if request.park is Park.THROTTLE:
            limited.update(disk.name for disk in owners)
        if len(owners) == 1 and request.park in DISK_PARKS and moves(facts, request):
            waiting.setdefault(owners[0].name, []).append(request.park)
    for disk in facts.disks.value if isinstance(facts.disks, Known) else ():
        limit = ", at QEMU's own limit" if disk.name in limited else ""
        yield from _long_requests(disk, limit)
        parks = waiting.get(disk.name, [])
        done = disk.completed.value if isinstance(disk.completed, Known) else 0
        if not parks or done <= 0 or len(parks) * facts.times.gap_seconds / done < SLOW_SECONDS:
            continue
        wait = len(parks) * facts.times.gap_seconds / done
        yield claim(
            f"disk {title(disk)} is slow{limit}: {count(len(parks), 'request')} waited, and it completed {done} in "
            f"{facts.times.gap_seconds:.1f} s, so a new one waits about {wait:.0f} s",
            disk.completed.cite if isinstance(disk.completed, Known) else disk.cite,
        )
