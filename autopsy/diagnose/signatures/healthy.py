"""Nothing is wrong: QEMU answers, and no request or thread stands still."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from autopsy.diagnose.diagnosis import Claim, Confidence
from autopsy.diagnose.queries.account import (
    about_idle,
    as_sentences,
    idle_peers,
    left_over,
    no_connection,
    whether_they_go_on,
)
from autopsy.diagnose.queries.kernel_sleepers import sleepers
from autopsy.diagnose.queries.limits.at_limits import copies_held
from autopsy.diagnose.queries.notifiers import unseen_notifiers
from autopsy.diagnose.queries.requests import Standing, called, counted, standing
from autopsy.diagnose.queries.silence import overtaken, slow
from autopsy.diagnose.queries.threads import by_role, looks, same_sleep, threads
from autopsy.diagnose.queries.wording import count, missing
from autopsy.diagnose.seen_before import stood_before
from autopsy.diagnose.signature import CannotTell, Judgement, Match, RuledOut, Signature, claim
from autopsy.facts.cite import Known, Unknown
from autopsy.facts.model.facts import Facts, Park, Role, ThreadFact
from autopsy.facts.model.yield_points import DISK_PARKS

SWITCHING = frozenset({"qemu_coroutine_switch", "qemu_coroutine_yield", "coroutine_trampoline"})
NOTHING_IN_FLIGHT = "No request was in flight"
WATCHED = DISK_PARKS | {Park.PVE_BACKUP, Park.CO_MUTEX, Park.COPY_MEMORY}


def _healthy(facts: Facts) -> Judgement:
    """Healthy needs proof too: threads, coroutines and an answer from QMP, and nothing among them that stands still."""
    if lacking := next(_lacking(facts), ""):
        return CannotTell(lacking)
    return next(_against(facts), None) or Match(
        headline=_headline(facts),
        objects=(),
        confidence=_sure(facts),
        claims=(
            *_claims(facts),
            *as_sentences(tuple(slow(facts))),
            *as_sentences(tuple(idle_peers(facts))),
            *(claim(f"Not accounted for: {doubt.text}", *doubt.cites) for doubt in _unaccounted(facts)),
        ),
    )


def _lacking(facts: Facts) -> Iterator[str]:
    """Yield what is missing without which a wedge could hide."""
    needed = (
        *(standing(facts, WATCHED), facts.threads, facts.coroutines),
        *(facts.descriptors, facts.polls, facts.locks, facts.heap_walked),
    )
    yield from (missing(fact) for fact in needed if isinstance(fact, Unknown))
    yield from _lacking_an_answer(facts)
    for vcpu in by_role(facts, Role.VCPU):
        if isinstance(vcpu.movement, Unknown):
            yield f"what {vcpu.comm} did between two looks: {missing(vcpu.movement)}"
    if nameless := _nameless(facts):
        yield f"what {count(nameless, 'parked coroutine')} wait for: QEMU's symbols, for its functions have no names"
    if unseen := unseen_notifiers(facts):
        yield f"the descriptors {', '.join(map(str, unseen))} of the disks' queues"
    yield from _lacking_the_other_half(facts)
    for disk in facts.disks.value if isinstance(facts.disks, Known) else ():
        done = isinstance(disk.completed, Known) and disk.completed.value > 0
        failed = isinstance(disk.stats, Known) and disk.stats.value.failed
        if failed and not done and isinstance(facts.failing_files, Unknown):
            yield f"whether the storage of {called(disk)} still fails: {missing(facts.failing_files)}"
    for job in facts.jobs.value if isinstance(facts.jobs, Known) else ():
        if job.status == "running" and isinstance(job.progressed, Unknown):
            yield f"whether job {job.id} goes on: {missing(job.progressed)}"


def _lacking_the_other_half(facts: Facts) -> Iterator[str]:
    """Yield what would tell whether a server or a back end that was not seen at the other end is missed."""
    for helper in facts.helpers:
        seen = any(socket.peers for socket in helper.sockets)
        if helper.kind == "vhost-user" and not seen and isinstance(helper.connected, Unknown):
            yield f"whether {helper.device} is connected to its back end: {missing(helper.connected)}"
        if helper.kind == "vhost-user" and not seen and isinstance(facts.sockets, Unknown):
            yield f"what the back end of {helper.device} does: {missing(facts.sockets)}"
    for disk in facts.disks.value if isinstance(facts.disks, Known) else ():
        counted = (disk.stats, disk.stats_again)
        if unknown := next((stats for stats in counted if isinstance(stats, Unknown)), None):
            for reason in no_connection(facts, disk):
                yield f"whether requests of {called(disk)} fail at once: {missing(unknown)}. {reason.text}"


def _lacking_an_answer(facts: Facts) -> Iterator[str]:
    """Yield what is missing where QEMU could not be asked: its own threads must show that it works, and the guest's."""
    if isinstance(facts.monitor.alive, Known):
        return
    if not facts.monitor.not_asked:
        yield missing(facts.monitor.alive)
    elif isinstance(facts.main_loop, Unknown) or facts.main_loop.value.state != "idle":
        yield f"whether the main loop comes round: nobody could be asked ({facts.monitor.not_asked})"
    elif not facts.vm.is_storage_daemon and not any(_in_the_guest(thread) for thread in by_role(facts, Role.VCPU)):
        yield f"whether the guest runs, or is paused: nobody could be asked ({facts.monitor.not_asked})"


def _in_the_guest(thread: ThreadFact) -> bool:
    """Tell whether a vCPU is inside of KVM: that of a paused VM waits for its condition instead."""
    return any(look.syscall.name in {"ioctl", "running"} for look in looks(thread))


def _nameless(facts: Facts) -> int:
    """Count the coroutines that stand still where nobody can say: any of them can be a request."""
    parked = facts.coroutines.value if isinstance(facts.coroutines, Known) else ()
    return sum(
        coroutine.park is Park.OTHER
        and not (isinstance(coroutine.stuck, Known) and not coroutine.stuck.value)
        and not any(frame.function and frame.function not in SWITCHING for frame in coroutine.frames)
        for coroutine in parked
    )


def _against(facts: Facts) -> Iterator[RuledOut]:
    """Yield whatever speaks against a healthy VM."""
    stuck = standing(facts, WATCHED)
    copies = copies_held(facts)
    if isinstance(stuck, Standing) and (requests := [request for request in stuck.requests if request not in copies]):
        yield RuledOut(
            f"{counted(facts, tuple(requests))} stand still", tuple(request.cite for request in requests[:6])
        )
    for alive, when in ((facts.monitor.alive, ""), (facts.monitor.alive_again, " at the second snapshot")):
        if isinstance(alive, Known) and not alive.value:
            yield RuledOut(f"QEMU's monitor did not answer{when}", (alive.cite,))
    last = facts.run_state_again if isinstance(facts.run_state_again, Known) else facts.run_state
    if isinstance(last, Known) and not last.value.running:  # one that runs by now was only paused for a moment
        yield RuledOut(f"the run state is {last.value.status}", (last.cite,))
    if isinstance(facts.locks, Known) and facts.locks.value.cycles:
        yield RuledOut("threads wait for mutexes in a ring", (facts.locks.cite,))
    if asleep := sleepers(facts):
        yield RuledOut(
            f"{count(len(asleep), 'thread')} wait in the kernel", tuple(sleeper.look.cite for sleeper in asleep[:4])
        )


def _sure(facts: Facts) -> Confidence:
    """Return how sure it is: without a monitor, whether requests failed or are slow cannot be seen."""
    if isinstance(facts.monitor.alive, Unknown):
        return "likely" if _both_looks(facts) else "possible"
    if _unaccounted(facts) or any(idle_peers(facts)):
        return "likely"
    return "proven" if _both(facts) else "likely"


def _unaccounted(facts: Facts) -> tuple[Claim, ...]:
    """Return what keeps it from being proven, what a watch saw stand still just before with it."""
    stood = stood_before(facts)
    return (*left_over(facts), *((stood,) if stood else ()))


def _both(facts: Facts) -> bool:
    """Tell whether both snapshots were there to compare."""
    return _both_looks(facts) and isinstance(facts.monitor.alive_again, Known)


def _both_looks(facts: Facts) -> bool:
    return any(isinstance(same_sleep(thread), Known) for thread in threads(facts))


def _headline(facts: Facts) -> str:
    if isinstance(facts.monitor.alive, Unknown):
        return f"Nothing looks stuck, but QEMU could not be asked: {facts.monitor.not_asked}"
    if still := about_idle(tuple(idle_peers(facts))):
        return still
    if stood := stood_before(facts):
        return f"Nothing is stuck now, but {stood.text[:1].lower()}{stood.text[1:].removesuffix('.')}"
    disks = facts.disks.value if isinstance(facts.disks, Known) else ()
    done = sum(disk.completed.value for disk in disks if isinstance(disk.completed, Known))
    if notable := next(chain(overtaken(facts), whether_they_go_on(facts), slow(facts)), None):
        return f"Nothing is stuck, but {notable.text.removesuffix('.')}"
    if done:
        seconds = f" in {facts.times.gap_seconds:.1f} s" if facts.times.gap_seconds else ""
        return f"Nothing is stuck: QEMU answers, and its disks completed {count(done, 'request')}{seconds}"
    parked = facts.coroutines.value if isinstance(facts.coroutines, Known) else ()
    moved = (
        "its requests go on" if any(coroutine.park in DISK_PARKS for coroutine in parked) else "no request is in flight"
    )
    return f"Nothing is stuck: QEMU answers, {moved}, no thread waits in the kernel"


def _claims(facts: Facts) -> list[Claim]:
    claims = []
    alive = facts.monitor.alive
    if isinstance(alive, Known):
        claims.append(claim("QEMU's main loop answered its monitor.", alive.cite))
    elif isinstance(facts.main_loop, Known):
        claims.append(claim(f"The main loop is {facts.main_loop.value.state}.", facts.main_loop.value.cite))
    if isinstance(facts.coroutines, Known):
        total = len([coroutine for coroutine in facts.coroutines.value if coroutine.park in DISK_PARKS])
        held = len(copies_held(facts))
        moved = count(total - held, "request was in flight", "requests were in flight")
        on = ", and all moved on" if not any(whether_they_go_on(facts)) else ""
        words = f"{moved}{on}" if total > held else NOTHING_IN_FLIGHT
        claims.append(claim(f"{words}.", facts.coroutines.cite, *(c.cite for c in facts.coroutines.value[:2])))
    if isinstance(facts.threads, Known):
        claims.append(
            claim(
                f"None of {count(len(threads(facts)), 'thread')} waits in the kernel for storage.", facts.threads.cite
            )
        )
    claims += [
        claim(f"Disk {disk.name} completed {disk.completed.value} requests.", disk.completed.cite)
        for disk in (facts.disks.value if isinstance(facts.disks, Known) else ())
        if isinstance(disk.completed, Known) and disk.completed.value > 0
    ]
    for thread in by_role(facts, Role.VCPU):
        if isinstance(thread.movement, Known) and thread.movement.value.seconds > 0:
            share = thread.movement.value.cpu_ns / 1e9 / thread.movement.value.seconds
            if share > 0.5:
                claims.append(claim(f"{thread.comm} used {share:.0%} of a CPU meanwhile.", thread.movement.cite))
    return claims[:12]


SIGNATURES = (Signature("healthy", "none", "nothing is wrong", _healthy),)
