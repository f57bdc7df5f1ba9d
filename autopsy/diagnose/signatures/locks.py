"""Locks and the monitor themselves: rings of locks, the BQL's owner that sleeps, a monitor held."""

from __future__ import annotations

from autopsy.bundle.syscalls import PEER_CALLS, SLEEP_CALLS
from autopsy.diagnose.queries import naming
from autopsy.diagnose.queries.kernel_stacks import waits_for
from autopsy.diagnose.queries.limits.throttle_locks import self_owned
from autopsy.diagnose.queries.peers.programs import called
from autopsy.diagnose.queries.requests import confidence, monitor_is_dead, still
from autopsy.diagnose.queries.socket_peers import about_sockets, awaited, of_monitor, peers_of, stands, state
from autopsy.diagnose.queries.threads import (
    all_are_open,
    functions,
    goes_on,
    is_in_glib_loop,
    looks,
    named,
    owns_bql,
    polls_with_bql,
    slept_through,
    threads,
)
from autopsy.diagnose.queries.wording import count, missing, sentence
from autopsy.diagnose.signature import CannotTell, Judgement, Match, RuledOut, Signature, claim
from autopsy.facts import subjects
from autopsy.facts.cite import Known, Unknown
from autopsy.facts.model.facts import Facts, MutexFact, Park, Role, SocketFact, ThreadFact

LOCK_FAMILIES = (
    ("virtio-scsi-tmf-deadlock", ("scsi_req_", "virtio_scsi_", "scsi_device_")),
    ("throttle-lock-self-deadlock", ("throttle_group",)),
)


def _thread(facts: Facts, tid: int) -> ThreadFact | None:
    return next((thread for thread in threads(facts) if thread.tid == tid), None)


def _subject(facts: Facts, tid: int) -> subjects.Thread:
    thread = _thread(facts, tid)
    return subjects.thread(thread) if thread else subjects.Thread(tid)


def _called(facts: Facts, tid: int) -> str:
    return naming.name(_subject(facts, tid))


def _family(facts: Facts, mutex: MutexFact) -> str:
    """Say which signature a mutex that waits for itself belongs to, by its owner's frames and where it lies."""
    thread = _thread(facts, mutex.owner)
    names = functions(thread) if thread else ()
    if mutex.in_object.startswith("SCSI device"):
        return "virtio-scsi-tmf-deadlock"
    if mutex.in_object.startswith("throttle group"):
        return "throttle-lock-self-deadlock"
    for signature, prefixes in LOCK_FAMILIES:
        if any(name.startswith(prefixes) for name in names):
            return signature
    return "throttle-lock-self-deadlock" if still(facts, Park.THROTTLE_LOCK) else "mutex-self-deadlock"


def _self_deadlock(facts: Facts, wanted: str, words: str) -> Judgement:
    if isinstance(facts.locks, Unknown):
        return CannotTell(f"who holds which mutex: {missing(facts.locks)}")
    own = self_owned(facts)
    mine = [mutex for mutex in own if _family(facts, mutex) == wanted]
    if not mine:
        why = "the mutex that waits for itself is another one" if own else "no thread waits for a mutex that it holds"
        return RuledOut(why, tuple(mutex.cite for mutex in own) or (facts.locks.cite,))
    mutex = mine[0]
    thread = _thread(facts, mutex.owner)
    frames = (thread.frames.cite,) if thread and isinstance(thread.frames, Known) else ()
    if wanted == "mutex-self-deadlock" and not frames:
        return CannotTell("whose mutex waits for itself: the frames of its owner (evidence/gdb.threads/threads.json)")
    who = _called(facts, mutex.owner)
    return Match(
        headline=f"{who[0].upper()}{who[1:]} waits for {words} that it holds itself",
        objects=(_subject(facts, mutex.owner), *((subjects.lock(mutex),) if mutex.in_object else ())),
        confidence="proven",
        claims=(
            claim(f"The mutex at {mutex.address:#x} is owned by {mutex.owner}, who waits for it.", mutex.cite, *frames),
            *(
                (
                    claim(
                        f"{count(len(mutex.waiters) - 1, 'other thread waits', 'other threads wait')} for it too.",
                        mutex.cite,
                    ),
                )
                if len(mutex.waiters) > 1
                else ()
            ),
        ),
        weight=len(mutex.waiters),
    )


def _tmf(facts: Facts) -> Judgement:
    return _self_deadlock(facts, "virtio-scsi-tmf-deadlock", "a SCSI device's mutex")


def _own_mutex(facts: Facts) -> Judgement:
    return _self_deadlock(facts, "mutex-self-deadlock", "a mutex")


def _cycle(facts: Facts) -> Judgement:
    if isinstance(facts.locks, Unknown):
        return CannotTell(f"who holds which mutex: {missing(facts.locks)}")
    rings = [ring for ring in facts.locks.value.cycles if len(ring) > 1]
    rings = [ring for ring in rings if not any(goes_on(facts, tid) for tid in ring)]
    if not rings:
        return RuledOut("no ring of threads waits for one another's mutexes", (facts.locks.cite,))
    ring = rings[0]
    mutexes = [mutex for mutex in facts.locks.value.mutexes if mutex.owner in ring and set(mutex.waiters) & set(ring)]
    kinds = ", ".join(dict.fromkeys(mutex.name or mutex.in_object or f"a {mutex.kind} mutex" for mutex in mutexes))
    return Match(
        headline=f"{count(len(ring), 'thread')} wait for one another's mutexes for ever: "
        f"{', '.join(_called(facts, tid) for tid in ring[:4])}",
        objects=tuple(_subject(facts, tid) for tid in ring[:6]),
        confidence="proven",
        claims=(
            *(
                claim(
                    f"{_called(facts, mutex.owner)} holds {mutex.name or 'the mutex'} at {mutex.address:#x}, which "
                    f"{', '.join(_called(facts, tid) for tid in mutex.waiters if tid in ring)} wait for.",
                    mutex.cite,
                )
                for mutex in mutexes[:6]
            ),
            claim(f"The ring closes over {kinds}: none of them can go on.", facts.locks.cite),
        ),
        weight=len(ring),
    )


def _bql_holder(facts: Facts) -> Judgement:
    """The BQL's owner sleeps somewhere, and the rest of QEMU waits for it."""
    if isinstance(facts.locks, Unknown):
        return CannotTell(f"who holds the BQL: {missing(facts.locks)}")
    owner = facts.locks.value.bql_owner
    if isinstance(owner, Unknown):
        return RuledOut("no vCPU and no main thread waits for the BQL", (facts.locks.cite,))
    bql = [mutex for mutex in facts.locks.value.mutexes if mutex.is_bql]
    holder = _thread(facts, owner.value)
    if not owner.value or not bql or holder is None:
        return RuledOut("nobody waits for a BQL that is held", (owner.cite,))
    slept = slept_through(holder)
    seen = looks(holder)
    if slept is False:
        return RuledOut(f"{named(holder)} holds the BQL and goes on", (owner.cite,))
    if not seen or seen[0].state == "R" or polls_with_bql(facts, holder):
        where = "polls" if seen and seen[0].state != "R" else "runs"
        return RuledOut(f"{named(holder)} holds the BQL, and {where}", (owner.cite,))
    waiters = tuple(tid for mutex in bql for tid in mutex.waiters)
    call = seen[0].syscall.name or "the kernel"
    why = f", {words}," if (words := waits_for(seen[0])) else ""
    mutex = next((mutex for mutex in facts.locks.value.mutexes if holder.tid in mutex.waiters), None)
    return Match(
        headline=f"{sentence(named(holder))} sleeps in {call}{why} and holds the BQL, which "
        f"{count(len(waiters), 'thread waits', 'threads wait')} for",
        objects=(subjects.thread(holder),),
        confidence=confidence(proven=slept is True),
        claims=(
            claim(f"The BQL's owner is {named(holder)}.", owner.cite),
            claim(f"It sleeps in {call}, State {seen[0].state}, {seen[0].wchan or 'wchan unknown'}.", seen[0].cite),
            claim(f"{count(len(waiters), 'thread')} wait for the BQL.", *(lock.cite for lock in bql)),
        ),
        effect=mutex is not None
        or seen[0].state == "D"
        or call in PEER_CALLS
        or is_in_glib_loop(holder)
        or _is_blocked_main(facts, holder),
        stands=awaited(facts, holder),
        weight=len(waiters),
    )


def _is_blocked_main(facts: Facts, thread: ThreadFact) -> bool:
    """Tell whether main-loop-blocked tells of the thread: it knows more of what it waits for."""
    loop = facts.main_loop
    return thread.role is Role.MAIN and isinstance(loop, Known) and loop.value.state == "blocked in a system call"


def _chardev(facts: Facts) -> Judgement:
    if all(isinstance(thread.frames, Unknown) for thread in threads(facts)):
        return CannotTell("the threads' frames (evidence/gdb.threads/threads.json)")
    writing = ("qemu_chr_write_buffer", "qemu_chr_write", "qemu_chr_fe_write_all")
    inside = [thread for thread in threads(facts) if any(name in writing for name in functions(thread))]
    if not inside:
        return RuledOut(
            ("no thread writes to a character device"),
            (facts.threads.cite,) if isinstance(facts.threads, Known) else (),
        )
    # A write that finds no room sleeps for 100 us and tries again, for ever; one that finds room does not sleep.
    waiting = [thread for thread in inside if any(look.syscall.name in SLEEP_CALLS for look in looks(thread))]
    # It may be met between two of its sleeps; what tells then is that nobody gets the BQL from it.
    dead = monitor_is_dead(facts)
    # One in State D has its room, and waits for whatever takes the bytes: a file's storage.
    deep = {thread.tid for thread in inside for look in looks(thread) if look.state == "D"}
    waiting = waiting or [
        thread for thread in inside if dead and owns_bql(facts, thread.tid) and thread.tid not in deep
    ]
    if not waiting:
        return RuledOut(
            f"{named(inside[0])} writes to a character device, and was not seen to wait for room",
            tuple(look.cite for look in looks(inside[0])),
        )
    thread = waiting[0]
    unread = _unread(facts)
    cites = (thread.frames.cite,) if isinstance(thread.frames, Known) else ()
    return Match(
        headline=f"{sentence(named(thread))} waits for the reader of a character device (serial, console, monitor)"
        f"{state(unread)}",
        objects=(subjects.thread(thread), *peers_of(unread)),
        confidence="likely",
        claims=(
            *about_sockets(unread),
            claim(f"{sentence(named(thread))} is inside qemu_chr_fe_write_all.", *cites),
            claim(
                "It sleeps between its tries: whoever reads the other end does not."
                if any(look.syscall.name in SLEEP_CALLS for look in looks(thread))
                else "It holds the BQL meanwhile, and the main loop did not come round: nobody reads the other end.",
                *(look.cite for look in looks(thread)),
            ),
        ),
        stands=awaited(facts, thread),
        weight=1,
    )


def _unread(facts: Facts) -> tuple[SocketFact, ...]:
    """Return the connection whose other end does not read, where only one can be meant."""
    sockets = facts.sockets.value if isinstance(facts.sockets, Known) else ()
    unread = tuple(socket for socket in sockets if socket.state == "ESTAB" and socket.send_queue)
    unread = unread or tuple(socket for socket in sockets if socket.family == "pipe" and stands((socket,)))
    # Both FIFOs of a chardev lead to one program.
    return unread[:1] if len({socket.peers for socket in unread}) == 1 else ()


def _monitor_held(facts: Facts) -> Judgement:
    greeting = facts.monitor.greeting
    if isinstance(greeting, Unknown):
        return CannotTell(f"how the monitor greeted: {missing(greeting)}")
    if greeting.value != "busy":
        return RuledOut(f"the monitor's greeting: {greeting.value}", (greeting.cite,))
    if facts.vm.manager == "libvirt" and "libvirt" in facts.monitor.holder:
        return RuledOut("libvirt holds the monitor, as it always does", (greeting.cite,))
    holder = facts.monitor.holder or "another client"
    return Match(
        headline=f"The monitor is held by {holder}: QEMU serves one client at a time",
        objects=(subjects.MonitorClient(holder),),
        confidence="proven" if facts.monitor.holder else "likely",
        claims=(claim(f"The socket accepted us and gave no greeting: {holder} has it.", greeting.cite),),
        beside=True,
    )


def _manager(facts: Facts) -> Judgement:
    """The program that holds the monitor stands still: of the VM that says nothing, and its users wait all the same."""
    if isinstance(facts.sockets, Unknown):
        return CannotTell(f"who holds the monitor: {missing(facts.sockets)}")
    holding = of_monitor(facts)
    silent = tuple(socket for socket in holding if stands((socket,)) and socket.peers)
    if not silent:
        return RuledOut("no program that holds the monitor stands still", tuple(socket.cite for socket in holding[:3]))
    return Match(
        headline=f"{called(silent[0].peers[0])}, which holds the monitor, does not do its work{state(silent)}",
        objects=peers_of(silent),
        confidence="proven",
        claims=tuple(about_sockets(silent)),
        harmless=True,
    )


def _unanswered(facts: Facts) -> Judgement:
    alive = facts.monitor.alive
    if isinstance(alive, Unknown):
        greeting = facts.monitor.greeting
        if isinstance(greeting, Known) and greeting.value == "silent" and all_are_open(facts):
            return RuledOut("it has no descriptor left to take our connection with", (greeting.cite,))
        if isinstance(greeting, Known) and greeting.value == "silent":
            return _dead(facts, "The monitor accepted us and said nothing", greeting.cite.text)
        return CannotTell(f"whether QEMU answers: {missing(alive)}")
    if alive.value:
        return RuledOut("QEMU's main loop answered its monitor", (alive.cite,))
    question = (
        facts.monitor.died_at.value.exchange.question if isinstance(facts.monitor.died_at, Known) else ("our question")
    )
    return _dead(facts, f"QEMU did not answer {question}", "")


def _dead(facts: Facts, words: str, detail: str) -> Match:
    alive = facts.monitor.alive if isinstance(facts.monitor.alive, Known) else facts.monitor.greeting
    cites = (alive.cite,) if isinstance(alive, Known) else ()
    return Match(
        headline=f"{words}: its main loop does not come round",
        objects=(subjects.Monitor(facts.vm.name),),
        confidence="likely",
        claims=(claim(f"{words}{f' ({detail})' if detail else ''}.", *cites),),
        effect=True,
        weight=1,
    )


def _dispatcher(facts: Facts) -> Judgement:
    if isinstance(facts.coroutines, Unknown):
        return CannotTell(f"the parked coroutines: {missing(facts.coroutines)}")
    running = still(facts, Park.QMP_COMMAND)
    if not running:
        return RuledOut("no QMP command is under way in a coroutine", (facts.coroutines.cite,))
    alive = facts.monitor.alive
    if isinstance(alive, Known) and alive.value:
        return RuledOut("QEMU answered its monitor meanwhile", (alive.cite,))
    if isinstance(facts.main_loop, Unknown):
        return CannotTell(f"what the main thread does: {missing(facts.main_loop)}")
    names = [frame.function for frame in running[0].frames if frame.function.startswith(("qmp_", "hmp_"))]
    command = next((name for name in names if name != "qmp_dispatch"), "")
    return Match(
        headline=(
            f"A QMP command is under way{f' ({command})' if command else ''}, and QMP answers nothing before it ends"
        ),
        objects=(subjects.Monitor(facts.vm.name),),
        confidence=confidence(
            proven=any(isinstance(coroutine.stuck, Known) and coroutine.stuck.value for coroutine in running)
        ),
        claims=(
            claim(
                "The dispatcher's coroutine is parked inside a command.", *(coroutine.cite for coroutine in running[:3])
            ),
        ),
        effect=facts.main_loop.value.state != "idle",
        weight=len(running),
    )


def _exhausted(facts: Facts) -> Judgement:
    """Tell of a process that has no descriptor left: whoever connects to it waits, and what it opens fails."""
    most = facts.most_descriptors
    if isinstance(most, Unknown):
        return CannotTell(f"how many files it may have open: {missing(most)}")
    if isinstance(facts.descriptors, Unknown):
        return CannotTell(f"how many files it has open: {missing(facts.descriptors)}")
    if not all_are_open(facts):
        return RuledOut(f"not all of the {most.value} files that it may have open are", (most.cite,))
    return Match(
        headline=f"QEMU has no file descriptor left: all {most.value} that it may have are open, so it accepts no "
        "connection and opens no file",
        objects=(subjects.Process(facts.vm.pid),),
        confidence="proven",
        claims=(
            claim(f"It may have {most.value} files open.", most.cite),
            claim("Each of these numbers is taken.", facts.descriptors.cite),
        ),
        stands=(subjects.Monitor(facts.vm.name),),
        beside=True,
        weight=1,
    )


SIGNATURES = (
    Signature("virtio-scsi-tmf-deadlock", "device", "a SCSI device's mutex waits for itself (task management)", _tmf),
    Signature("lock-cycle", "control", "threads wait for one another's mutexes", _cycle),
    Signature("mutex-self-deadlock", "control", "a thread waits for a mutex that it holds", _own_mutex),
    Signature("bql-holder-blocked", "control", "the BQL's owner sleeps", _bql_holder),
    Signature("chardev-blocked", "control", "a character device's reader does not read", _chardev),
    Signature("qmp-dispatcher-busy", "control", "a QMP command blocks all others", _dispatcher),
    Signature("descriptors-exhausted", "control", "the process has no file descriptor left", _exhausted),
    Signature("monitor-held", "control", "another client holds the monitor", _monitor_held),
    Signature("manager-silent", "control", "the manager's daemon stands still", _manager),
    Signature("monitor-unanswered", "control", "the monitor does not answer", _unanswered),
)
