"""Read QEMU's structures by their shape, on memory that may be torn.

Members are looked for by name, newest first, and never by a version number. Every walk along a list is bounded and
knows where it has been. What cannot be read becomes a note.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import field
from typing import TypeVar

import drgn

from autopsy.bundle.heap.loops import CoLock, HeapMutex, NamedLock, Timer
from autopsy.dataclass import dataclass

MOST_ELEMENTS = 10_000  # of one list; a VM with more disks or requests than this has not been seen
MOST_NOTES = 200
LONGEST_NAME = 1024
FIRST = ("tqh_first", "lh_first", "slh_first", "sqh_first")
NEXT = ("tqe_next", "le_next", "sle_next", "sqe_next")
CLOCKS = ("realtime", "virtual", "host", "virtual-rt")  # QEMUClockType

# What drgn raises on bad pointers (FaultError), other shapes (LookupError, AttributeError, TypeError), odd DWARF.
TORN = (drgn.FaultError, LookupError, AttributeError, TypeError, ValueError, OverflowError)


T = TypeVar("T")


@dataclass(slots=True)
class Walk:
    """One walk over one snapshot: the program, the clock it was frozen at, and what went wrong so far.

    `polled` are the fds that some thread polls, and `rings_poll` says that io_uring may poll others.
    """

    program: drgn.Program
    frozen_at_ns: int
    polled: frozenset[int] | None
    rings_poll: bool
    notes: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    device_names: dict[int, str] = field(default_factory=dict)
    context_names: dict[int, str] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    locks: dict[int, NamedLock] = field(default_factory=dict)

    def note(self, text: str) -> None:
        """Keep a remark for the reader, up to a bound."""
        if len(self.notes) < MOST_NOTES:
            self.notes.append(text[:300])

    def bound_bit(self, what: str) -> None:
        """Remember that a list is longer than what is read of it."""
        self.note(f"{what}: cut at {MOST_ELEMENTS} elements")
        if len(self.cut) < MOST_NOTES:
            self.cut.append(what)

    @contextmanager
    def reading(self, what: str) -> Iterator[None]:
        """Turn what cannot be read into a note, so that the rest of the walk goes on."""
        try:
            yield
        except TORN as error:
            self.note(f"{what}: {error or type(error).__name__}")

    def value(self, what: str, read: Callable[[Walk], T], otherwise: T) -> T:
        """Return what `read` reads, or `otherwise` with a note."""
        with self.reading(what):
            return read(self)
        return otherwise

    def knows(self, name: str, owner: drgn.Object, *members: str) -> None:
        """Remember the mutexes that an object has under these names, newest layouts and older ones alike."""
        for lock_name in members:
            mutex = member(owner, lock_name)
            if mutex is None or member(mutex, "locked") is not None:  # a CoMutex, as BlockDriverState's was until v8.1
                continue
            with self.reading(f"{lock_name} of {name}"):
                held = lock(mutex)
                self.locks[held.address] = NamedLock(
                    name=f"{lock_name} of {name}", address=held.address, owner=held.owner
                )

    def variable(self, *names: str) -> drgn.Object | None:
        """Return the first global or static variable of these names that this QEMU has."""
        for name in names:
            try:
                return self.program.variable(name)
            except LookupError:
                continue
        return None

    def chain(self, what: str, head: drgn.Object, link: str) -> Iterator[drgn.Object]:
        """Yield pointers to the elements of any of QEMU's queues, up to a bound, a loop or a bad pointer."""
        seen: set[int] = set()
        with self.reading(what):
            element = _one_of(head, FIRST)
            while address := pointer(element):
                if address in seen:
                    self.note(f"{what}: the list runs in a circle at {address:#x}")
                    return
                if len(seen) == MOST_ELEMENTS:
                    self.bound_bit(what)
                    return
                seen.add(address)
                following = _one_of(element.member_(link), NEXT)
                yield element
                element = following

    def coroutines(self, what: str, queue: drgn.Object) -> tuple[int, ...]:
        """Return the coroutines that wait in a CoQueue."""
        return tuple(pointer(co) for co in self.chain(what, queue.member_("entries"), "co_queue_next"))

    def function(self, address: int) -> str:
        """Return the name of the function at exactly this address, or the address."""
        if not address:
            return ""
        if address not in self.names:
            try:
                self.names[address] = self.program.symbol(address).name
            except LookupError:
                self.names[address] = f"{address:#x}"
        return self.names[address]

    def timer(self, timer: drgn.Object | None, context: int = 0) -> Timer | None:
        """Return the timer that the pointer points to."""
        if timer is None or not pointer(timer):
            return None
        expires = int(timer.member_("expire_time"))
        timers = timer.member_("timer_list")
        clock = int(timers.clock.type) if pointer(timers) else len(CLOCKS)
        armed = expires >= 0
        return Timer(
            address=pointer(timer),
            clock=CLOCKS[clock] if clock < len(CLOCKS) else "unknown",
            callback=self.function(pointer(timer.cb)),
            opaque=pointer(timer.opaque),
            expires_ns=expires if armed else None,
            due_in_ns=expires - self.frozen_at_ns if armed and clock == 0 and self.frozen_at_ns else None,
            context=context,
        )


def pointer(value: drgn.Object) -> int:
    """Return a pointer's value."""
    address: int = value.value_()
    return address


def member(value: drgn.Object, *names: str) -> drgn.Object | None:
    """Return the first of these members that this layout has."""
    for name in names:
        try:
            return value.member_(name)
        except LookupError:
            continue
    return None


def number(value: drgn.Object, *names: str) -> int | None:
    """Return the first of these members as a number, None if this layout has none of them."""
    first = member(value, *names)
    return None if first is None else int(first)


def flag(value: drgn.Object, *names: str) -> bool | None:
    """Return the first of these members as a truth, None if this layout has none of them."""
    first = number(value, *names)
    return None if first is None else bool(first)


def string(value: drgn.Object) -> str:
    """Return a C string (a char pointer or an array), empty for a null pointer."""
    if value.type_.kind == drgn.TypeKind.POINTER:
        address = pointer(value)
        data = value.prog_.read_c_string(address, max_size=LONGEST_NAME) if address else b""
    else:
        data = value.string_()[:LONGEST_NAME]
    return data.decode("utf-8", "backslashreplace")


def word(value: drgn.Object, prefix: str) -> str:
    """Return an enumeration's value in the words people use: `NBD_CLIENT_QUIT` is `quit`."""
    return enumerator(value.type_, int(value), prefix)


def enumerator(kind: drgn.Type, number: int, prefix: str) -> str:
    """Return the name of an enumeration's number, without its prefix; the number itself if it has no name."""
    while kind.kind == drgn.TypeKind.TYPEDEF:
        kind = kind.type
    for constant in (kind.enumerators if kind.kind == drgn.TypeKind.ENUM else None) or ():
        if constant.value == number:
            name: str = constant.name
            return name.removeprefix(prefix).lower().replace("_", "-")
    return str(number)


def lock(mutex: drgn.Object) -> HeapMutex:
    """Return a QemuMutex. Until QEMU 2.x and in C libraries of another shape there is no __data: that raises."""
    inner = mutex.member_("lock") if member(mutex, "lock") is not None else mutex.member_("m").member_("lock")
    address = mutex.address_
    if address is None:
        raise ValueError("the mutex has no address")
    owner: int = inner.member_("__data").member_("__owner").value_()
    return HeapMutex(address=address, owner=owner)


def co_lock(mutex: drgn.Object | None) -> CoLock | None:
    """Return a CoMutex."""
    if mutex is None:
        return None
    return CoLock(locked=int(mutex.locked), holder=pointer(mutex.holder))


def object_type(instance: drgn.Object) -> tuple[str, ...]:
    """Return the QOM type of an Object pointer with its ancestors, the most derived first."""
    implementation = instance.member_("class").member_("type")
    names: list[str] = []
    while pointer(implementation) and len(names) < 32:
        names.append(string(implementation.name))
        implementation = implementation.parent_type
    return tuple(names)


def cast(program: drgn.Program, kind: str, address: int) -> drgn.Object:
    """Return a pointer of the given type."""
    return drgn.Object(program, program.type(f"{kind} *"), value=address)


def _one_of(value: drgn.Object, names: tuple[str, ...]) -> drgn.Object:
    element = member(value, *names)
    if element is None:
        raise LookupError(f"{value.type_.type_name()} is no list that is known")
    return element
