"""QEMU's loops and their threads: they sleep outside of their poll, spin, or wait for RCU."""

from __future__ import annotations

from collections.abc import Iterator

from autopsy.bundle.syscalls import DESCRIPTOR_CALLS, PEER_CALLS, POLL_CALLS, REQUEST_CALLS
from autopsy.diagnose.diagnosis import Claim, Where
from autopsy.diagnose.queries.account import about, unexplained
from autopsy.diagnose.queries.kernel_stacks import family, waits_for
from autopsy.diagnose.queries.migration import sends_state
from autopsy.diagnose.queries.peers.programs import called
from autopsy.diagnose.queries.requests import title
from autopsy.diagnose.queries.socket_peers import (
    about_openers,
    about_processes,
    about_sockets,
    awaited,
    ends_of,
    openers_of,
    peers_of,
    processes_of,
    socket_of,
    stands,
    state,
)
from autopsy.diagnose.queries.threads import (
    by_role,
    descriptor,
    functions,
    looks,
    named,
    polls_with_bql,
    slept_through,
    threads,
)
from autopsy.diagnose.queries.wording import count, missing, sentence
from autopsy.diagnose.signature import CannotTell, Judgement, Match, RuledOut, Signature, claim
from autopsy.diagnose.signatures.device_backends import of_a_helper
from autopsy.facts import subjects
from autopsy.facts.cite import Known, Unknown
from autopsy.facts.model.facts import (
    Descriptor,
    DiskFact,
    Facts,
    MainLoopFact,
    Origin,
    PeerFact,
    Role,
    ThreadFact,
    ThreadSnapshot,
)

# A library's threads may rest in any call; these are QEMU's own, and rest in theirs.
WORKING = frozenset({Role.IOTHREAD, Role.WORKER, Role.VCPU})
WORK = REQUEST_CALLS - PEER_CALLS - {"ioctl"}  # what no thread rests in, whoever's it is
BUSY_SHARE = 0.85
MOST_OPENERS = 3


def _blocked(facts: Facts) -> Judgement:
    """The main thread sleeps in a system call that is no poll of its loop, whatever it waits for there."""
    main = next(iter(by_role(facts, Role.MAIN)), None)
    if main is None:
        return CannotTell("the main thread (evidence/witness/tasks.txt)")
    if isinstance(facts.main_loop, Unknown):
        return CannotTell(f"what the main thread does: {missing(facts.main_loop)}")
    loop = facts.main_loop.value
    if why := _why_not(facts, main, loop):
        return RuledOut(why, (loop.cite,))
    if unseen := _unseen(facts, main):
        return CannotTell(unseen)
    look = looks(main)[0]
    what = waits_for(look)
    on = _descriptor(facts, look)
    file = on.target if on else loop.path
    call = f"{loop.under}{f' of {file}' if file else ''}"
    ends = socket_of(facts, main) if on else ()
    openers = openers_of(facts, main)
    processes = processes_of(facts, main)
    who = about_openers(openers) or about_processes(processes) or (state(ends) if stands(ends) else "")
    place = f"{call}{f', {what},' if what else ''}"
    names = [name for name in dict.fromkeys(functions(main)) if name][:4]
    frames = (main.frames.cite,) if isinstance(main.frames, Known) else ()
    return Match(
        headline=f"The main thread sleeps in {place} and its loop does not come round{who}",
        objects=(
            subjects.thread(main),
            *((subjects.File(file),) if file else ()),
            *peers_of(ends),
            *map(subjects.peer, (*openers, *processes)[:MOST_OPENERS]),
        ),
        confidence="proven" if slept_through(main) and what else "likely",
        claims=(
            claim(
                f"The main thread is in {call}{', under ' + ', '.join(names) if names else ''}.",
                loop.cite,
                *frames,
                *((on.cite,) if on else ()),
            ),
            *((claim(f"It works on {loop.command}.", loop.cite),) if loop.command else ()),
            claim(f"State {look.state}, {look.wchan or 'wchan unknown'}: it waits {what or 'there'}.", look.cite),
            *about_sockets(ends),
            *_about(facts, openers),
            *(claim(f"{called(peer)} is in State {peer.state or 'unknown'}.", peer.cite) for peer in processes[:3]),
        ),
        where="host" if look.state == "D" else None,
        beside=True,
        weight=1,
    )


def _about(facts: Facts, openers: tuple[PeerFact, ...]) -> Iterator[Claim]:
    """Yield that each of them opens the other end, and what it does."""
    cites = tuple(opening.cite for opening in facts.fifo_openings)
    for peer in openers[:MOST_OPENERS]:
        words = f"{called(peer)} is in open(2) of its other end, State {peer.state or 'unknown'}."
        yield claim(words, *cites[:1], peer.cite)


def _why_not(facts: Facts, main: ThreadFact, loop: MainLoopFact) -> str:
    """Say why the main loop is not blocked, or what it waits for is another signature's to tell; empty if it is."""
    if loop.state != "blocked in a system call":
        return f"the main thread is not blocked in a system call: {loop.state}"
    if isinstance(facts.monitor.alive, Known) and facts.monitor.alive.value:
        return "QEMU's main loop answered its monitor"
    if slept_through(main) is False:
        return f"{named(main)} went on"
    if any(look.state == "R" for look in looks(main)):
        return f"{named(main)} ran, or was ready to"
    known = any(family(look) for look in looks(main)[:1]) or sends_state(main) or of_a_helper(facts, main)
    return "another signature tells what the main thread waits for" if known or ends_of(facts, main) else ""


def _unseen(facts: Facts, main: ThreadFact) -> str:
    """Say what is missing that could show another cause, empty if nothing is."""
    if isinstance(facts.vm.end, Known) and slept_through(main) is None:
        return "whether the main thread went on: the VM ended before anything told"
    seen = looks(main)[:1]
    if not seen or not seen[0].syscall.name:
        return "the main thread's system call (evidence/witness/tasks.txt)"
    look = seen[0]
    if look.state == "D" and not look.kernel_stack:
        return "the main thread's kernel stack (evidence/witness/tasks.txt)"
    on: list[Descriptor | None] = []
    if look.syscall.name in PEER_CALLS:
        on = [_descriptor(facts, look)]
    elif look.syscall.name in POLL_CALLS:
        if isinstance(facts.polls, Unknown):
            return f"what the main thread polls: {missing(facts.polls)}"
        polled = [fd.fd for poll in facts.polls.value if poll.tid == main.tid for fd in poll.fds]
        on = [descriptor(facts, fd) for fd in polled] or [None]
    if any(fd is None or fd.kind == "socket" for fd in on):
        return "what the descriptors are that the main thread waits for (evidence/proc.fds)"
    return ""


def _descriptor(facts: Facts, look: ThreadSnapshot) -> Descriptor | None:
    """Return what a system call works on, where its first argument is a descriptor."""
    number = look.syscall.arguments[:1] if look.syscall.name in DESCRIPTOR_CALLS else ()
    return descriptor(facts, number[0]) if number else None


def _spins(facts: Facts) -> Judgement:
    if isinstance(facts.threads, Unknown):
        return CannotTell("how much CPU the main thread used (evidence/witness/tasks.txt)")
    busy = []
    for thread in by_role(facts, Role.MAIN, Role.IOTHREAD):
        if isinstance(thread.movement, Unknown):
            if thread.role is Role.MAIN:
                return CannotTell(f"how much CPU the main thread used: {missing(thread.movement)}")
            continue
        moved = thread.movement.value
        if (
            moved.seconds > 0
            and moved.cpu_ns / 1e9 / moved.seconds > BUSY_SHARE
            and (moved.voluntary_switches or 0) < 50
        ):
            busy.append((thread, moved, thread.movement.cite))
    if not busy or _tcg(facts):
        return RuledOut("neither the main thread nor an iothread used a whole CPU", (facts.threads.cite,))
    thread, moved, cite = next((one for one in busy if not _polls_at_work(facts, one[0])), busy[0])
    polls = _polls_at_work(facts, thread)
    if thread.role is Role.IOTHREAD and not polls and not _counted(facts, thread):
        return CannotTell(f"whether {named(thread)} polls, and its disks go on (query-blockstats, twice)")
    place = next((name for name in functions(thread) if name), "")
    return Match(
        headline=f"{named(thread)} runs without a pause: {moved.cpu_ns / 1e9 / moved.seconds:.0%} of a CPU",
        objects=(subjects.thread(thread),),
        confidence="possible" if polls else "likely",
        claims=(
            claim(
                f"{named(thread)} used {moved.cpu_ns / 1e9:.1f} s of CPU in {moved.seconds:.1f} s and hardly slept"
                f"{f'; it was in {place}' if place else ''}.",
                cite,
            ),
            *polls[:1],
        ),
        beside=bool(polls),
        weight=1,
    )


def _polls_at_work(facts: Facts, thread: ThreadFact) -> tuple[Claim, ...]:
    """Say that disks went on while an iothread spun: it polls for what comes next, as poll-max-ns lets it.

    One that spins for another reason serves none of its disks meanwhile.
    """
    if thread.role is not Role.IOTHREAD or isinstance(facts.disks, Unknown):
        return ()
    counted = _counted(facts, thread)
    done = [(disk, completed) for disk, completed in counted if completed.value > 0]
    if not done or any(not completed.value and _owes(disk) for disk, completed in counted):
        return ()
    disk, completed = done[0]
    words = f"Disk {title(disk)} completed {count(completed.value, 'request')} meanwhile: it polls, as it may."
    return (claim(words, completed.cite),)


def _counted(facts: Facts, thread: ThreadFact) -> list[tuple[DiskFact, Known[int]]]:
    """Return the disks that an iothread may serve, those of which it is known how many requests they completed."""
    name = thread.comm.removeprefix("IO ").strip()
    disks = facts.disks.value if isinstance(facts.disks, Known) else ()
    served = [disk for disk in disks if not isinstance(disk.iothread, Known) or disk.iothread.value == name]
    return [(disk, disk.completed) for disk in served if isinstance(disk.completed, Known)]


def _owes(disk: DiskFact) -> bool:
    return isinstance(disk.in_flight, Known) and disk.in_flight.value > 0


def _tcg(facts: Facts) -> bool:
    """Tell whether one thread runs all vCPUs by TCG with the main thread: then burning CPU is its work."""
    return isinstance(facts.vm.arguments, Known) and any("thread=single" in word for word in facts.vm.arguments.value)


def _rcu(facts: Facts) -> Judgement:
    """Tell of a thread that waits until RCU's callbacks have run: they need the BQL, which it may keep from them."""
    main = next(iter(by_role(facts, Role.MAIN)), None)
    # Of stacks that others printed, another signature tells whom its readers wait for.
    looked_at = threads(facts) if facts.origin is Origin.CAPTURE else by_role(facts, Role.MAIN)
    inside = [thread for thread in looked_at if "drain_call_rcu" in functions(thread)]
    if not inside and (main is None or isinstance(main.frames, Unknown)):
        return CannotTell("the main thread's frames (evidence/gdb.threads/threads.json)")
    if not inside:
        cites = (main.frames.cite,) if main and isinstance(main.frames, Known) else ()
        return RuledOut("no thread waits for RCU", cites)
    alive = facts.monitor.alive
    answered = isinstance(alive, Known) and alive.value
    waiting = [thread for thread in inside if slept_through(thread) is not False and not (answered and thread is main)]
    if not waiting:
        return RuledOut(
            f"{named(inside[0])} waited for RCU, and went on", tuple(look.cite for look in looks(inside[0]))
        )
    thread = waiting[0]
    frames = (thread.frames.cite,) if isinstance(thread.frames, Known) else ()
    return Match(
        headline=f"{sentence(named(thread))} waits for RCU callbacks (drain_call_rcu) that may need what it holds",
        objects=(subjects.thread(thread),),
        confidence="likely",
        claims=(claim(f"{sentence(named(thread))} is inside drain_call_rcu.", *frames),),
        weight=1,
    )


def _asleep(facts: Facts) -> Judgement:
    if isinstance(facts.threads, Unknown):
        return CannotTell("the threads' system calls (evidence/witness/tasks.txt)")
    asleep = [thread for thread in unexplained(facts) if _works(thread) and not _told_elsewhere(facts, thread)]
    if not asleep:
        watched = [thread for thread in threads(facts) if thread.role in WORKING]
        if watched and all(slept_through(thread) is None for thread in watched):
            return CannotTell("a second look at the threads (evidence/second-exposure/tasks.txt)")
        return RuledOut("no iothread, worker or vCPU sleeps in a call that nobody explains", (facts.threads.cite,))
    thread = asleep[0]
    look = looks(thread)[0]
    what = waits_for(look)
    sockets = socket_of(facts, thread)
    processes = processes_of(facts, thread)
    more = f", and {count(len(asleep) - 1, 'more thread')}" if len(asleep) > 1 else ""
    return Match(
        headline=f"{sentence(named(thread))} sleeps in {look.syscall.name}{f', {what}' if what else ''}"
        f"{about_processes(processes) or (state(sockets) if stands(sockets) else '')}{more}",
        objects=(
            *(subjects.thread(sleeper) for sleeper in asleep[:4]),
            *peers_of(sockets),
            *map(subjects.peer, processes[:MOST_OPENERS]),
        ),
        confidence="likely",
        claims=tuple(about(facts, sleeper) for sleeper in asleep[:4]),
        stands=tuple(subject for sleeper in asleep for subject in awaited(facts, sleeper)),
        where=_where(facts, thread),
        beside=True,
        weight=len(asleep),
    )


def _works(thread: ThreadFact) -> bool:
    """Tell whether a thread is at work: by its role, or, where QEMU names none of its threads, by its call."""
    return thread.role in WORKING or (thread.role is Role.OTHER and looks(thread)[0].syscall.name in WORK)


def _told_elsewhere(facts: Facts, thread: ThreadFact) -> bool:
    """Tell whether another signature knows what the thread waits for."""
    locks = facts.locks.value.mutexes if isinstance(facts.locks, Known) else ()
    submits = looks(thread)[0].syscall.name == "io_submit"
    return (
        submits
        or polls_with_bql(facts, thread)
        or any(thread.tid in mutex.waiters for mutex in locks)
        or sends_state(thread)
        or of_a_helper(facts, thread)
        or bool(ends_of(facts, thread))
    )


def _where(facts: Facts, thread: ThreadFact) -> Where:
    if looks(thread)[0].state == "D":
        return "host"
    return "peer" if socket_of(facts, thread) else "control"


SIGNATURES = (
    Signature("main-loop-blocked", "control", "the main loop sleeps in a system call", _blocked),
    Signature("main-loop-spins", "control", "the main loop or an iothread spins", _spins),
    Signature("thread-asleep", "control", "a thread sleeps in a call that nobody explains", _asleep),
    Signature("rcu-drain-wait", "control", "the main loop waits for RCU", _rcu),
)
