"""What each thread waits for and holds, as far as the functions on its stack tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum

from autopsy.dataclass import dataclass
from autopsy.diagnose import function_names as words
from autopsy.diagnose.queries.threads import threads
from autopsy.facts.cite import Cite, Known
from autopsy.facts.model.facts import Facts, Role, ThreadFact


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
            around = self.names[place + 1 : place + 2]
            if name in words.POLLS and around and around[0] not in words.OWN_LOOPS:
                functions.append(around[0])
            elif name in words.OLD_POLLS and not place:
                functions.append(name)
        return tuple(functions)

    @property
    def is_main(self) -> bool:
        """Tell whether it is the main thread."""
        return self.thread.role is Role.MAIN


def stacks(facts: Facts) -> tuple[NamedStack, ...]:
    """Return every thread that has frames, but those that moved from one look to the next."""
    again = _again(facts)
    known_stacks = []
    for thread in threads(facts):
        if not isinstance(thread.frames, Known):
            continue
        names = tuple(_plain(frame.function) for frame in thread.frames.value)
        if thread.tid in again and again[thread.tid] != names:
            continue
        known_stacks.append(_stack(thread, names, thread.frames.cite))
    return tuple(known_stacks)


def _again(facts: Facts) -> Mapping[int, tuple[str, ...]]:
    later = facts.frames_again
    if not isinstance(later, Known):
        return {}
    return {stack.tid: tuple(_plain(frame.function) for frame in stack.frames) for stack in later.value}


def _plain(name: str) -> str:
    return name if name.startswith("<") else name.partition(".")[0].removeprefix("__GI_")


def _stack(thread: ThreadFact, names: tuple[str, ...], cite: Cite) -> NamedStack:
    place = next((at for at, name in enumerate(names) if name and name not in words.WAITING), len(names))
    inner, outer = names[:place], names[place:]
    under = outer[0] if outer else ""
    call = next((system_call for name in names[:4] if (system_call := words.system_call(name))), "")
    wait = _wait(inner, outer, call, names)
    stack = NamedStack(thread, names, wait, under, outer, call, holds_bql=False, cite=cite)
    return NamedStack(thread, names, wait, under, outer, call, holds_bql=_holds_bql(stack), cite=cite)


def _wait(inner: tuple[str, ...], outer: tuple[str, ...], call: str, names: tuple[str, ...]) -> WaitKind:
    for wait, wanted in (
        (WaitKind.JOIN, words.JOINS),
        (WaitKind.SEMAPHORE, words.SEMAPHORES),
        (WaitKind.EVENT, words.EVENTS),
        (WaitKind.CONDITION, words.CONDITIONS),
        (WaitKind.LOCK, words.LOCKS),
    ):
        if any(name in wanted or (name.startswith(words.OLD_LOCK) and wait is WaitKind.LOCK) for name in inner):
            return WaitKind.RESTS if outer and outer[0] in words.IDLE_UNDER.get(wait.name, frozenset()) else wait
    if _polls(names):
        return WaitKind.POLL
    if _rests(outer, call, names):
        return WaitKind.RESTS
    if call:
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
            around = names[place + 1] if place + 1 < len(names) else ""
            quiet = all(
                inner in words.POLLING or words.system_call(inner) in words.POLL_CALLS for inner in names[:place]
            )
            return quiet and around not in words.OWN_LOOPS and around != ""
    return False


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
