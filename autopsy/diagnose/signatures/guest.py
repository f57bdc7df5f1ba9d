"""The guest alone: QEMU owes it nothing, and it asks for nothing; or the host gives it no CPU."""

from __future__ import annotations

from autopsy.diagnose.queries.account import left_over
from autopsy.diagnose.queries.requests import all_counted, counted, still
from autopsy.diagnose.queries.threads import by_role
from autopsy.diagnose.queries.wording import count, missing
from autopsy.diagnose.signature import CannotTell, Judgement, Match, RuledOut, Signature, claim
from autopsy.facts import subjects
from autopsy.facts.cite import Cite, Known, Unknown
from autopsy.facts.model.facts import DiskFact, Facts, Movement, Role, ThreadFact
from autopsy.facts.model.yield_points import DISK_PARKS

LONG_ENOUGH = 3.0
SPIN_SHARE = 0.9
STARVED_SHARE = 0.5
KEPT_SHARE, LEFT_SHARE = 0.9, 0.08


def _spins(facts: Facts) -> Judgement:  # noqa: PLR0911 - one reason a line
    """A vCPU that burns its CPU and asks no disk for anything, while QEMU owes it nothing."""
    spinning = _burning(facts)
    if not isinstance(spinning, list):
        return spinning
    completed = [disk for disk in _disks(facts) if isinstance(disk.completed, Known)]
    if not completed:
        return CannotTell("the disks' counters in both snapshots (query-blockstats)")
    done = [disk for disk in completed if isinstance(disk.completed, Known) and disk.completed.value > 0]
    if done:
        return RuledOut("the disks complete requests: the guest works", tuple(disk.cite for disk in done[:3]))
    if isinstance(facts.coroutines, Unknown):
        return CannotTell(f"the parked coroutines: {missing(facts.coroutines)}")
    if stuck := still(facts, *DISK_PARKS):
        return RuledOut(
            f"QEMU holds {counted(facts, stuck)} of the guest", tuple(request.cite for request in stuck[:3])
        )
    if not all_counted(facts):
        return CannotTell("whether QEMU owes the guest a request: not all of its memory was taken")
    vcpus = by_role(facts, Role.VCPU)
    thread, moves, cite = spinning[0]
    return Match(
        headline=f"QEMU owes the guest nothing: {thread.comm} ran, or was ready to, all of {moves.seconds:.0f} s, and "
        "asked no disk for anything",
        objects=tuple(subjects.thread(vcpu) for vcpu, _, _ in spinning[:8]),
        confidence="possible",
        claims=(
            claim(
                (
                    f"{count(len(spinning), 'vCPU')} of {len(vcpus)} ran without a pause; a guest that computes looks "
                    "the same."
                ),
                *(one for _, _, one in spinning[:4]),
            ),
            claim(
                ("No disk completed a request meanwhile, and none is in flight."),
                *(disk.cite for disk in completed[:3]),
                cite,
            ),
            *(claim(f"Not accounted for: {doubt.text}", *doubt.cites) for doubt in left_over(facts)),
        ),
        weight=len(spinning),
    )


def _disks(facts: Facts) -> tuple[DiskFact, ...]:
    return facts.disks.value if isinstance(facts.disks, Known) else ()


def _burning(facts: Facts) -> list[tuple[ThreadFact, Movement, Cite]] | RuledOut | CannotTell:
    """Return the vCPUs that ran nearly all of the time between two looks that are far enough apart."""
    vcpus = by_role(facts, Role.VCPU)
    moved = [(vcpu, vcpu.movement.value, vcpu.movement.cite) for vcpu in vcpus if isinstance(vcpu.movement, Known)]
    if not moved:
        return CannotTell("how much CPU the vCPUs used: a second snapshot (evidence/second-exposure/tasks.txt)")
    if max(moves.seconds for _, moves, _ in moved) < LONG_ENOUGH:
        return CannotTell(f"a gap of at least {LONG_ENOUGH:.0f} s between the snapshots: capture without --fast")
    # On a host without CPU to spare a spinning vCPU runs only part of the time, and is ready to run for all of it.
    spinning = [
        one
        for one in moved
        if one[1].cpu_ns + one[1].waited_ns > SPIN_SHARE * one[1].seconds * 1e9 and one[1].cpu_ns > one[1].seconds * 1e8
    ]
    cites = tuple(cite for _, _, cite in moved[:3])
    return spinning or RuledOut(f"none of {count(len(vcpus), 'vCPU')} used a whole CPU", cites)


def _starved(facts: Facts) -> Judgement:
    if isinstance(facts.threads, Unknown):
        return CannotTell("how long the threads waited for a CPU (evidence/witness/tasks.txt)")
    watched = by_role(facts, Role.MAIN, Role.IOTHREAD, Role.VCPU)
    moved = [
        (thread, thread.movement.value, thread.movement.cite)
        for thread in watched
        if isinstance(thread.movement, Known)
    ]
    if not moved:
        return CannotTell("how long the threads waited for a CPU: a second snapshot")
    starved = [
        one for one in moved if one[1].seconds >= 0.4 and one[1].waited_ns / 1e9 > STARVED_SHARE * one[1].seconds
    ]
    if not starved:
        return RuledOut("no thread waited for a CPU for most of the time", tuple(cite for _, _, cite in moved[:3]))
    limited = facts.host.cpu_limited
    capped = isinstance(limited, Known) and limited.value > 0
    # On a busy host everybody waits, and comes on; who gets next to nothing is kept from running.
    kept = [thread for thread, moves, _ in starved if _is_kept(moves)]
    hardly_ran = [thread for thread, moves, _ in starved if moves.cpu_ns < LEFT_SHARE * moves.seconds * 1e9]
    # What is done and what comes in waits for the loops: without them nothing that stands says why.
    starves = any(thread.role is not Role.VCPU for thread in (hardly_ran if capped else kept))
    return Match(
        headline=f"{count(len(starved), 'thread')} of QEMU waited for a CPU of the host most of the time"
        f"{': the control group is capped (cpu.max)' if capped else ''}",
        objects=tuple(subjects.thread(thread) for thread, _, _ in starved[:6]),
        confidence="likely" if capped or kept else "possible",
        claims=(
            *(
                claim(
                    (
                        f"{thread.comm} was ready to run and waited {moves.waited_ns / 1e9:.1f} of "
                        f"{moves.seconds:.1f} s for a CPU."
                    ),
                    cite,
                )
                for thread, moves, cite in starved[:4]
            ),
            *(
                (claim(("The control group was throttled."), limited.cite),)
                if isinstance(limited, Known) and capped
                else ()
            ),
        ),
        beside=not starves,
        starves=starves,
        weight=len(starved),
    )


def _is_kept(moves: Movement) -> bool:
    waited, ran = moves.waited_ns / 1e9, moves.cpu_ns / 1e9
    return waited > KEPT_SHARE * moves.seconds and ran < LEFT_SHARE * moves.seconds


SIGNATURES = (
    Signature("guest-spins", "guest", "the guest burns CPU and asks for no I/O", _spins),
    Signature("cpu-starved", "host", "the host gives the VM no CPU", _starved),
)
