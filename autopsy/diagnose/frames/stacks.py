"""What each thread waits for and holds, as far as the functions on its stack tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from enum import Enum

from autopsy.bundle.syscalls import SLEEP_CALLS
from autopsy.dataclass import dataclass
from autopsy.diagnose import function_names as words
from autopsy.diagnose.once import once
from autopsy.diagnose.queries.threads import looks, polls_under, slept_through, threads
from autopsy.facts.cite import Cite, Known
from autopsy.facts.model.facts import Facts, Origin, Role, ThreadFact


class WaitKind(Enum):
    """How a thread waits; the value says it in words."""

    LOCK = "waits for a mutex"
    POLL = "polls inside a call of its own"
    SEMAPHORE = "waits for a semaphore"
    EVENT = "waits for an event"
    CONDITION = "waits for a condition"
    JOIN = "waits for a thread's end"
    CALL = "is in a system call"
    RESTS = "rests"
    RUNS = "runs"
    NAMELESS = "stands where no name tells what it does"


@dataclass(frozen=True, slots=True)
class NamedStack:
    """One thread's functions, innermost first, with how it waits there.

    `under` is the first function outside of the waiting itself; `outer` are the functions from it outwards. `call` is
    the system call. `holds_bql` says what its place implies: there it cannot be without the BQL.
    """

    thread: ThreadFact
    names: tuple[str, ...]
    wait: WaitKind
    under: str
    outer: tuple[str, ...]
    call: str
    holds_bql: bool
    cite: Cite

    def has(self, *wanted: str) -> str:
        """Return the innermost of these functions that it is in, empty for none."""
        return next((name for name in self.names if name in wanted), "")

    def begins(self, *starts: str) -> str:
        """Return its innermost function outside of the waiting whose name begins so, empty for none."""
        return next((name for name in self.outer if name.startswith(starts)), "")

    @property
    def wants_bql(self) -> bool:
        """Tell whether it waits for the BQL."""
        return self.wait is WaitKind.LOCK and (self.has(*words.BQL) != "" or self.under in words.ONLY_BQL)

    @property
    def wants_context(self) -> bool:
        """Tell whether it waits for an AioContext's lock."""
        return self.wait is WaitKind.LOCK and self.has("aio_context_acquire") != "" and not self.wants_bql

    @property
    def polls_for(self) -> tuple[str, ...]:
        """Return the functions that poll, innermost first: those around each aio_poll that is no thread's own loop."""
        functions = []
        for place, name in enumerate(self.names):
            if name in words.POLLS and (around := polls_under(self.names, place)):
                functions.append(around)
            elif name in words.OLD_POLLS and not place:
                functions.append(name)
        return tuple(functions)

    @property
    def is_main(self) -> bool:
        """Tell whether it is the main thread."""
        return self.thread.role is Role.MAIN


@once
def stacks(facts: Facts) -> tuple[NamedStack, ...]:
    """Return every thread that has frames, but those that moved from one look to the next."""
    again = _again(facts)
    owner = _bql_owner(facts)
    known_stacks = []
    for thread in threads(facts):
        if not isinstance(thread.frames, Known):
            continue
        names = tuple(_plain(frame.function) for frame in thread.frames.value)
        if thread.tid in again and again[thread.tid] != names:
            continue
        stack = _stack(thread, names, thread.frames.cite)
        if owner is not None:
            stack = replace(stack, holds_bql=thread.tid == owner)
        if facts.origin is not Origin.CAPTURE or _stands(facts, stack):
            known_stacks.append(stack)
    return tuple(known_stacks)


def _bql_owner(facts: Facts) -> int | None:
    """Return which thread of a captured VM has the BQL, 0 for none; None where only its place tells, as in a paste."""
    if facts.origin is not Origin.CAPTURE or not isinstance(facts.locks, Known):
        return None
    owner = facts.locks.value.bql_owner
    return owner.value if isinstance(owner, Known) else None


def _stands(facts: Facts, stack: NamedStack) -> bool:
    """Tell whether a captured thread stood still, as far as that was seen.

    Who runs with the BQL, or sleeps for a moment and tries again, holds up all others as well. Where the main loop
    answered, only what was seen to stand at both looks is more than a moment's.
    """
    alive = isinstance(facts.monitor.alive, Known) and facts.monitor.alive.value
    slept = slept_through(stack.thread)
    tries = all(look.state == "R" or look.syscall.name in SLEEP_CALLS for look in looks(stack.thread))
    return slept is True or (not alive and (slept is None or (stack.holds_bql and tries)))


def _again(facts: Facts) -> Mapping[int, tuple[str, ...]]:
    later = facts.frames_again
    if not isinstance(later, Known):
        return {}
    return {stack.tid: tuple(_plain(frame.function) for frame in stack.frames) for stack in later.value}


def _plain(name: str) -> str:
    return name if name.startswith("<") else name.partition(".")[0].removeprefix("__GI_")


def _stack(thread: ThreadFact, names: tuple[str, ...], cite: Cite) -> NamedStack:
    names = names[next((at for at, name in enumerate(names) if name not in words.ENTRIES), 0) :]
    place = next((at for at, name in enumerate(names) if name and not _waits(name)), len(names))
    inner, outer = names[:place], names[place:]
    under = outer[0] if outer else ""
    call = next((system_call for name in names[:4] if (system_call := words.system_call(name))), "")
    wait = _wait(inner, outer, call, names)
    stack = NamedStack(thread, names, wait, under, outer, call, holds_bql=False, cite=cite)
    return NamedStack(thread, names, wait, under, outer, call, holds_bql=_holds_bql(stack), cite=cite)


def _waits(name: str) -> bool:
    return name in words.WAITING or name.startswith(words.RUST_WAITS)


def _wait(inner: tuple[str, ...], outer: tuple[str, ...], call: str, names: tuple[str, ...]) -> WaitKind:
    for wait, wanted in (
        (WaitKind.LOCK, words.TICKETS),
        (WaitKind.JOIN, words.JOINS),
        (WaitKind.SEMAPHORE, words.SEMAPHORES),
        (WaitKind.EVENT, words.EVENTS),
        (WaitKind.CONDITION, words.CONDITIONS),
        (WaitKind.LOCK, words.LOCKS),
    ):
        others = words.OTHER_WAITS.get(wait.name, ())
        if any(name in wanted or name.startswith(others) for name in inner):
            return WaitKind.RESTS if outer and outer[0] in words.IDLE_UNDER.get(wait.name, frozenset()) else wait
    if _polls(names):
        return WaitKind.POLL
    if _rests(outer, call, names):
        return WaitKind.RESTS
    if call or names[:1] == ("syscall",):
        return WaitKind.CALL
    named = bool(names and names[0]) and not words.ENDS.intersection(names[:3])
    return WaitKind.RUNS if named else WaitKind.NAMELESS


def _rests(outer: tuple[str, ...], call: str, names: tuple[str, ...]) -> bool:
    """Tell whether it waits for whatever comes next: in its own loop, or in the guest."""
    if "fdmon_io_uring_wait" in names or (call == "ioctl" and set(outer[:2]) & words.GUEST_RUNS):
        return True
    if call not in words.POLL_CALLS or words.FOR_ONE_THING.intersection(names):
        return False
    return not outer or bool(set(outer[:6]) & words.LOOPS)


def _polls(names: tuple[str, ...]) -> bool:
    """Tell whether the innermost that it does is a poll of its own: nothing but polling lies inside of it."""
    for place, name in enumerate(names):
        if name in words.OLD_POLLS and not place:
            return True
        if name in words.POLLS:
            inside = [inner for inner in names[:place] if inner]
            quiet = all(inner in words.POLLING or words.system_call(inner) in words.POLL_CALLS for inner in inside)
            # Static functions have no name in a stripped build: the poll itself has one of them, what it ran has more.
            few = place - len(inside) <= MOST_NAMELESS and bool(names[0])
            return quiet and few and polls_under(names, place) != ""
    return False


MOST_NAMELESS = 1


def _holds_bql(stack: NamedStack) -> bool:
    if stack.wants_bql:
        return False
    names = set(stack.names)
    if stack.is_main:
        return stack.wait is not WaitKind.RESTS
    return bool(names & words.DISPATCH or names & words.UNDER_BQL)


def of_role(known_stacks: Iterable[NamedStack], *roles: Role) -> tuple[NamedStack, ...]:
    """Return the stacks of threads of some roles."""
    return tuple(stack for stack in known_stacks if stack.thread.role in roles)
