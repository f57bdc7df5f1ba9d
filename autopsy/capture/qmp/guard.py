"""Says whether a question that can take a lock inside QEMU may be asked, by what was seen without asking anything.

Each suspicion of the witness is looked at once more before it counts: a thread that runs while it is watched is not
stuck. That it ran since the witness says nothing: the freeze in between wakes every sleeper for an instant.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from autopsy import text
from autopsy.bundle import layout, proc_stat, sections
from autopsy.bundle.records import FutexWait, GuardLook, MainGlance
from autopsy.capture.proc.thread_waits import call_now, read_memory
from autopsy.capture.qmp import file_answers
from autopsy.capture.reading.procfs import OPEN, ProcDirectory, held
from autopsy.capture.step import Scene
from autopsy.dataclass import dataclass
from autopsy.linux.child import ChildFailed, ChildTimedOut, in_child

FUTEX_WAIT_PRIVATE = 0x80
CONTENDED = 2  # glibc's value of a mutex that somebody waits for
OWNER_OFFSET = 8  # of __owner in pthread_mutex_t
GLANCES = 5  # at the main thread; one that shows it at rest is enough
GLANCE_SECONDS = 0.01
WATCH_SECONDS = 0.1  # the suspects; most clear themselves within a few ms
LOOK_SECONDS = 1.0
STOPPED = frozenset("Tt")

TASK_FILE = re.compile(r"task/(\d{1,9})/(\w+)")
FUSE = re.compile(
    rb"\b(?:request_wait_answer|fuse_(?!dev_|uring_)\w+)"
)  # fuse_dev_read is a daemon that waits for work
NSPID = re.compile(rb"^NSpid:.*?(\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Permit:
    """Nothing was seen that would keep the answer from coming."""


@dataclass(frozen=True, slots=True)
class Unanswerable:
    """Why an answer might never come, each reason a sentence."""

    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WitnessedThread:
    """One thread as the witness saw it. `ran` changes whenever it gets a CPU; `inner` is its tid as QEMU knows it."""

    tid: int
    inner: int
    comm: str
    state: str
    wchan: str
    in_fuse: bool
    ran: bytes

    def __str__(self) -> str:
        return f"{self.comm or 'a thread'} (tid {self.tid})"


@dataclass(frozen=True, slots=True)
class Witnessed:
    """What the witness saw: the threads by tid, and those that waited for a mutex."""

    pid: int
    threads: Mapping[int, WitnessedThread]
    mutex_waits: tuple[FutexWait, ...]

    def owner(self, wait: FutexWait) -> WitnessedThread | None:
        """Return the thread that owns the mutex, None when nobody does; QEMU writes the tid of its own namespace."""
        return next((thread for thread in self.threads.values() if wait.owner and thread.inner == wait.owner), None)

    def suspects(self) -> Iterator[int]:
        """Yield the threads that may be stuck."""
        waiting = {wait.tid for wait in self.mutex_waits}
        for thread in self.threads.values():
            if thread.state == "D" or thread.state in STOPPED or thread.in_fuse or thread.tid in waiting:
                yield thread.tid


def judge_monitor(scene: Scene) -> Permit | Unanswerable:
    """Judge by the stored witness, a fresh look, and what the VM's files answer to us; leave guard.json."""
    tasks = scene.earlier(layout.WITNESS, layout.TASKS)
    futexes = scene.earlier(layout.WITNESS, layout.FUTEXES)
    if not tasks or not futexes:
        return Unanswerable((f"the witness left no {layout.FUTEXES if tasks else layout.TASKS}",))
    try:
        seen = witnessed(scene.target.pid, tasks, futexes)
        # In a child, for the target's memory is read: that can block where a thread holds mmap_lock.
        fresh = in_child(lambda: msgspec.json.encode(_look_again(scene, seen)), LOOK_SECONDS)
        now = msgspec.json.decode(fresh, type=GuardLook)
    except (ChildTimedOut, ChildFailed, msgspec.DecodeError) as error:
        return Unanswerable((f"what the witness saw could not be looked at again: {text.printable(str(error))}",))
    verdict = may_ask(seen, now)
    if isinstance(verdict, Permit):
        silent, failing = file_answers.unanswered(scene.target)
        now = msgspec.structs.replace(now, failing=failing)
        verdict = Unanswerable((silent,)) if silent else verdict
    if isinstance(verdict, Unanswerable):
        now = msgspec.structs.replace(now, reasons=verdict.reasons)
    scene.write_json(layout.GUARD, now)
    return verdict


def witnessed(pid: int, tasks: bytes, futexes: bytes) -> Witnessed:
    """Read the witness's tasks.txt and futexes.json.

    Raises:
        msgspec.DecodeError: futexes.json is damaged.
    """
    files: dict[int, dict[str, bytes]] = {}
    for section in sections.parse(tasks):
        if not section.error and (name := TASK_FILE.fullmatch(section.name)):
            files.setdefault(int(name[1]), {})[name[2]] = section.data
    threads = {tid: _thread(tid, read) for tid, read in files.items()}
    waits = msgspec.json.decode(futexes, type=tuple[FutexWait, ...])
    return Witnessed(pid, threads, tuple(wait for wait in waits if _is_mutex(wait.operation, wait.value)))


def _thread(tid: int, files: Mapping[str, bytes]) -> WitnessedThread:
    inner = NSPID.search(files.get("status", b""))
    wchan = files.get("wchan", b"")
    return WitnessedThread(
        tid=tid,
        inner=int(inner[1]) if inner else tid,
        comm=text.printable(files.get("comm", b"").removesuffix(b"\n")),
        state=proc_stat.parse(files.get("stat", b"")).state,
        wchan=text.printable(wchan.strip(), 60),
        in_fuse=bool(FUSE.search(wchan) or FUSE.search(files.get("stack", b""))),
        ran=files.get("schedstat", b""),
    )


def _is_mutex(operation: int, value: int) -> bool:
    return operation == FUTEX_WAIT_PRIVATE and value == CONTENDED


def _look_again(scene: Scene, seen: Witnessed) -> GuardLook:
    """Watch each suspect for a moment, and look at the main thread until it is seen at rest."""
    with held(scene.target) as process:
        suspects = {tid: _ran(process, tid) for tid in seen.suspects()}
        memory = os.open("mem", OPEN, dir_fd=process.folder)
        try:
            main = tuple(_glances(process, memory, seen))
        finally:
            os.close(memory)
        return GuardLook(moved=tuple(_cleared(process, seen, suspects)), main=main)


def _ran(process: ProcDirectory, tid: int) -> bytes:
    return process.small(f"task/{tid}/schedstat")


def _cleared(process: ProcDirectory, seen: Witnessed, suspects: Mapping[int, bytes]) -> Iterator[int]:
    """Yield the suspects that run, or do something else by now."""
    waits = {wait.tid: wait for wait in seen.mutex_waits}
    left = dict(suspects)
    until = time.monotonic() + WATCH_SECONDS
    while left:
        for tid, ran in tuple(left.items()):
            thread = seen.threads.get(tid)
            if thread is not None and (
                not _is_as_it_was(process, thread, waits.get(tid))
                or (thread.state not in STOPPED and _ran(process, tid) != ran)
            ):
                del left[tid]
                yield tid
        if time.monotonic() >= until:
            return
        time.sleep(GLANCE_SECONDS)


def _is_as_it_was(process: ProcDirectory, thread: WitnessedThread, wait: FutexWait | None) -> bool:
    """Return whether a suspect still does what made it one."""
    task = f"task/{thread.tid}"
    now = proc_stat.parse(process.small(f"{task}/stat")).state
    if not now:
        return False  # it has ended
    if thread.state in STOPPED:
        return now in STOPPED
    if thread.in_fuse:
        return bool(FUSE.search(process.small(f"{task}/wchan")) or FUSE.search(process.small(f"{task}/stack")))
    if wait is not None:
        call = call_now(process, thread.tid)
        return call is not None and call.name == "futex" and call.arguments[0] == wait.address
    return now == "D"


def _glances(process: ProcDirectory, memory: int, seen: Witnessed) -> Iterator[MainGlance]:
    addresses = {wait.address for wait in seen.mutex_waits}
    inner = seen.threads[seen.pid].inner if seen.pid in seen.threads else seen.pid
    for _ in range(GLANCES):
        call = call_now(process, seen.pid)
        glance = MainGlance(
            state=proc_stat.parse(process.small(f"task/{seen.pid}/stat")).state,
            call=call.name if call else "",
            waits_for_mutex=call is not None and call.name == "futex" and _is_mutex(*call.arguments[1:3]),
            owned=tuple(sorted(address for address in addresses if _owner_at(memory, address) == inner)),
        )
        yield glance
        if _at_rest(glance):
            return
        time.sleep(GLANCE_SECONDS)


def _owner_at(memory: int, mutex: int) -> int:
    return int.from_bytes(read_memory(memory, mutex + OWNER_OFFSET, 4), "little")


def _at_rest(glance: MainGlance) -> bool:
    """Return whether the main loop can take a question: it runs, or it polls and owns nothing that others want."""
    return glance.state == "R" or (glance.call in {"poll", "ppoll"} and not glance.owned)


def may_ask(seen: Witnessed, now: GuardLook) -> Permit | Unanswerable:
    """Return whether a question that can take a lock would be answered. Pure: what it knows, it is given."""
    reasons = (*_asleep(seen, now), *_behind_mutexes(seen, now), *_main(seen, now))
    return Unanswerable(reasons) if reasons else Permit()


def _asleep(seen: Witnessed, now: GuardLook) -> Iterator[str]:
    """Yield each sleep that only the kernel, storage or another program can end."""
    still = [thread for thread in seen.threads.values() if thread.tid not in now.moved]
    if fuse := [thread for thread in still if thread.in_fuse]:
        yield f"{_crowd(fuse)} waits for a FUSE daemon"
    if deep := [thread for thread in still if thread.state == "D" and not thread.in_fuse]:
        where = ", ".join(sorted({thread.wchan for thread in deep} - {"", "0"})[:3])
        yield f"{_crowd(deep)} is in an uninterruptible sleep{where and f' ({where})'}"
    if stopped := [thread for thread in still if thread.state in STOPPED]:
        yield f"{_crowd(stopped)} is stopped or traced"


def _behind_mutexes(seen: Witnessed, now: GuardLook) -> Iterator[str]:
    """Yield the waits for mutexes that have lasted since the witness: deadlocks first, then who is behind them."""
    still = {wait.tid: wait for wait in seen.mutex_waits if wait.tid not in now.moved}
    owners = {tid: owner.tid for tid, wait in still.items() if (owner := seen.owner(wait))}
    locked: set[int] = set()
    for tid in still:
        ring = _ring(tid, owners)
        if locked.isdisjoint(ring):
            locked.update(ring)
            if len(ring) == 1:
                yield f"{_who(seen, tid)} waits for a mutex that it owns itself"
            elif ring:
                yield f"{' and '.join(_who(seen, member) for member in ring)} wait for each other's mutexes"
    behind: dict[int, list[int]] = {}
    for tid in still:
        if tid not in locked and tid != seen.pid:  # the main thread has a rule of its own
            behind.setdefault(owners.get(tid, 0), []).append(tid)
    for holder, waiters in behind.items():
        whose = f"a mutex of {_who(seen, holder)}" if holder else "a mutex that no thread owns"
        yield f"{_crowd([seen.threads[waiter] for waiter in waiters if waiter in seen.threads])} waits for {whose}"


def _ring(tid: int, owners: Mapping[int, int]) -> tuple[int, ...]:
    """Return the ring of waiters that this one is part of, from itself on; nothing when its chain has an end."""
    ring = [tid]
    while (following := owners.get(ring[-1])) is not None:
        if following == tid:
            return tuple(ring)
        if following in ring:
            return ()
        ring.append(following)
    return ()


def _main(seen: Witnessed, now: GuardLook) -> Iterator[str]:
    """Yield why the main loop could not take a question, if no glance shows that it could."""
    if any(_at_rest(glance) for glance in now.main):
        return
    main = f"the main thread (tid {seen.pid})"
    if not now.main:
        yield f"{main} was not seen again"
        return
    last = now.main[-1]
    if last.state in STOPPED:
        yield f"{main} is stopped or traced"
    elif last.waits_for_mutex:
        yield f"{main} waits for a mutex"
    elif last.owned:
        waiter = next(wait.tid for wait in seen.mutex_waits if wait.address in last.owned)
        yield f"{main} polls inside another wait: it owns a mutex that {_who(seen, waiter)} waited for"
    else:
        yield f"{main} is in {last.call or 'a system call'} (state {last.state or '?'}), not in its loop"


def _who(seen: Witnessed, tid: int) -> str:
    return str(seen.threads.get(tid) or f"tid {tid}")


def _crowd(threads: Sequence[WitnessedThread]) -> str:
    """Name one thread of several; the verb that follows is the first one's."""
    if not threads:
        return "a thread"
    return f"{threads[0]} (like {len(threads) - 1} more)" if len(threads) > 1 else str(threads[0])
