"""Finds threads by role, and tells which of them moved between the two snapshots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from autopsy.bundle.syscalls import POLL_CALLS
from autopsy.diagnose import function_names as words
from autopsy.diagnose.once import once
from autopsy.diagnose.queries import naming
from autopsy.facts import subjects
from autopsy.facts.cite import Fact, Known, Unknown
from autopsy.facts.model.facts import Descriptor, Facts, Role, ThreadFact, ThreadSnapshot

# A thread that sleeps in the kernel without being able to be stopped gains no switch from our capture.
FEW_SWITCHES = 2


LITTLE_NS = 1_000_000
# futex(2): pthread_join waits at the thread's own number, which the kernel clears when it ends, without the flag of
# what is private to the process.
PRIVATE, KIND = 0x80, 0x7F
WAITS = frozenset({0, 9})  # FUTEX_WAIT, FUTEX_WAIT_BITSET
BLOCK_POLLS = POLL_CALLS | {"io_uring_enter"}  # since QEMU 11 a thread's own AioContext may wait in its ring
GLIB_LOOPS = frozenset({"g_main_loop_run", "g_main_context_iteration"})
RESOLVES = frozenset({"getaddrinfo", "__GI_getaddrinfo", "__res_context_send", "__res_context_query"})


def threads(facts: Facts) -> tuple[ThreadFact, ...]:
    """Return the threads, none where they are unknown."""
    return facts.threads.value if isinstance(facts.threads, Known) else ()


def looks(thread: ThreadFact) -> tuple[ThreadSnapshot, ...]:
    """Return what is known of a thread, earliest first."""
    first, again = thread.first, thread.again
    if isinstance(first, Unknown):
        return () if isinstance(again, Unknown) else (again.value,)
    return (first.value,) if isinstance(again, Unknown) else (first.value, again.value)


def same_sleep(thread: ThreadFact) -> Fact[bool]:
    """Tell whether a thread slept through from the first look to the last, in one and the same system call."""
    for side in (thread.first, thread.again, thread.movement):
        if isinstance(side, Unknown):
            return side
    return Known(bool(slept_through(thread)), looks(thread)[-1].cite)


def slept_through(thread: ThreadFact) -> bool | None:
    """Tell whether a thread slept through from the first look to the last; None where it cannot be told."""
    if thread.ended:
        return False
    if isinstance(thread.first, Unknown) or isinstance(thread.again, Unknown) or isinstance(thread.movement, Unknown):
        return None
    moved = thread.movement.value
    switches = moved.voluntary_switches
    if moved.cpu_ns >= LITTLE_NS if switches is None else switches > FEW_SWITCHES:
        return False
    first, again = thread.first.value, thread.again.value
    if first.kernel_stack and again.kernel_stack:
        # A stop changes the way into the call, and not where the thread sleeps in it.
        deep = 1 if first.syscall.restarted or again.syscall.restarted else None
        if first.kernel_stack[:deep] != again.kernel_stack[:deep]:
            return False
    elif first.wchan and again.wchan and first.wchan != again.wchan:
        return False
    return first.syscall.is_like(again.syscall) or not (first.syscall.name and again.syscall.name)


@once
def by_role(facts: Facts, *roles: Role) -> tuple[ThreadFact, ...]:
    """Return the threads of some roles."""
    return tuple(thread for thread in threads(facts) if thread.role in roles)


@once
def by_tid(facts: Facts) -> dict[int, ThreadFact]:
    """Return the threads by their numbers."""
    return {thread.tid: thread for thread in threads(facts)}


@once
def in_calls(facts: Facts, calls: frozenset[str]) -> tuple[ThreadFact, ...]:
    """Return the threads that were in one of these system calls when they were first seen."""
    return tuple(thread for thread in threads(facts) if any(look.syscall.name in calls for look in looks(thread)[:1]))


def named(thread: ThreadFact) -> str:
    """Return a thread as people speak of it."""
    return naming.name(subjects.thread(thread))


def descriptor(facts: Facts, fd: int) -> Descriptor | None:
    """Return an open descriptor by its number, None where it is not known."""
    return _descriptors(facts).get(fd)


def all_are_open(facts: Facts) -> bool:
    """Tell whether the process has no descriptor left: it accepts no connection, and opens no file."""
    if isinstance(facts.descriptors, Unknown) or isinstance(facts.most_descriptors, Unknown):
        return False
    most = facts.most_descriptors.value
    return 0 < most <= sum(opened.fd < most for opened in facts.descriptors.value)


@once
def _descriptors(facts: Facts) -> dict[int, Descriptor]:
    by_fd: dict[int, Descriptor] = {}
    for opened in facts.descriptors.value if isinstance(facts.descriptors, Known) else ():
        by_fd.setdefault(opened.fd, opened)
    return by_fd


def owns_bql(facts: Facts, tid: int) -> bool:
    """Tell whether a thread is known to hold the BQL."""
    owner = facts.locks.value.bql_owner if isinstance(facts.locks, Known) else None
    return isinstance(owner, Known) and owner.value == tid and tid != 0


def polls_with_bql(facts: Facts, thread: ThreadFact) -> bool:
    """Tell whether a thread waits for events of the block layer and keeps the BQL, as in a drain.

    A loop of GLib's that runs inside of a call, as for an answer over D-Bus, waits for others.
    """
    polls = any(look.syscall.name in BLOCK_POLLS for look in looks(thread)[:1])
    return polls and not is_in_glib_loop(thread) and owns_bql(facts, thread.tid)


def is_in_glib_loop(thread: ThreadFact) -> bool:
    """Tell whether a thread runs a loop of GLib's, and polls for nothing of the block layer's."""
    names = functions(thread)
    return "aio_poll" not in names and any(name in GLIB_LOOPS for name in names)


def goes_on(facts: Facts, tid: int) -> bool:
    """Tell whether a thread was seen to go on from one look to the other: it waits for nothing for good."""
    thread = by_tid(facts).get(tid)
    return thread is not None and slept_through(thread) is False


def main_tid(facts: Facts) -> int:
    """Return the main thread's id: the process's own."""
    return facts.vm.pid


def blocks_main_loop(facts: Facts, tids: Iterable[int]) -> bool:
    """Tell whether one of these threads is the main thread, or holds the BQL that it needs."""
    return any(tid == main_tid(facts) or owns_bql(facts, tid) for tid in tids)


def condition_of(thread: ThreadFact) -> str:
    """Return the function that waits for a condition, a semaphore or an event in a futex, empty where a thread rests.

    Only a function with a name tells: QEMU's own loops rest so, too, and most of them have none in a stripped binary.
    """
    if isinstance(thread.frames, Unknown) or not any(look.syscall.name == "futex" for look in looks(thread)[:1]):
        return ""
    inside: list[str] = []
    for place, frame in enumerate(thread.frames.value):
        name = _plain(frame.function)
        if not name or name in words.WAITING:
            inside.append(name)
            continue
        # A name right outside of the wait: one further out says nothing of what a nameless one between them does.
        if not place or not inside[-1]:
            return ""
        waits = [kind for kind, wanted in words.CONDITION_KINDS.items() if wanted.intersection(inside)]
        idle = any(name in words.IDLE_UNDER.get(kind, ()) for kind in waits)
        return "" if not waits or idle or name in words.RESTING else name
    return ""


def _plain(name: str) -> str:
    """Return a function's name without its version, its clone's number, and what the C library puts around it."""
    bare = name.partition("@")[0].partition(".")[0]
    inner = bare.lstrip("_").removesuffix("64")
    return inner if inner in words.WAITING else bare


def joins(thread: ThreadFact) -> int:
    """Return which thread's end a thread waits for, 0 where it waits for none."""
    for look in looks(thread)[:1]:
        if look.syscall.name == "futex" and len(look.syscall.arguments) > 2:
            _, operation, value = look.syscall.arguments[:3]
            if operation & KIND in WAITS and not operation & PRIVATE:
                return value
    return 0


def polls_inside(thread: ThreadFact) -> bool:
    """Tell whether a thread polls inside of a call of its own, as in a drain, and not in the loop where it rests."""
    names = functions(thread)
    return any(name in words.POLLS and polls_under(names, place) for place, name in enumerate(names))


def polls_under(names: Sequence[str], place: int) -> str:
    """Return the function that polls by aio_poll at a place of a stack; empty for a loop's own, where threads rest.

    A stripped build has no name for a static one: then it is the next that has, and no thread begins in what polls.
    """
    around = next((name for name in names[place + 1 :] if name), "")
    return "" if around in words.OWN_LOOPS or around in words.BEGINNINGS else around


def looking_up(facts: Facts) -> ThreadFact | None:
    """Return a thread that asked a name server for an address at both looks, None where none did."""
    return next(
        (thread for thread in threads(facts) if slept_through(thread) and RESOLVES.intersection(functions(thread))),
        None,
    )


def functions(thread: ThreadFact) -> tuple[str, ...]:
    """Return the names of a thread's frames, innermost first."""
    return tuple([frame.function for frame in thread.frames.value]) if isinstance(thread.frames, Known) else ()
