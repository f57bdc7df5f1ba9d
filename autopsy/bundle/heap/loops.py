"""What the heap tells of locks, timers and event loops, as strict types.

Members mean what heap_records.py says at its head.
"""

from __future__ import annotations

import msgspec


class HeapMutex(msgspec.Struct, frozen=True, kw_only=True):
    """A QemuMutex: `owner` is the thread that holds it, 0 when it is free."""

    address: int
    owner: int


class NamedLock(msgspec.Struct, frozen=True, kw_only=True):
    """A mutex inside a heap object, so that locks.json's address can be named: `throttle group tg0`."""

    name: str
    address: int
    owner: int


class CoLock(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A CoMutex: `locked` counts its holder and those who wait; `holder` is a coroutine."""

    locked: int
    holder: int = 0


class Timer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A QEMUTimer. `due_in_ns` is measured against the frozen clock, negative when it is overdue.

    `expires_ns` is None when the timer is not armed; `due_in_ns` is None for clocks that are not CLOCK_MONOTONIC.
    """

    address: int
    clock: str
    callback: str
    opaque: int = 0
    expires_ns: int | None = None
    due_in_ns: int | None = None
    context: int = 0


class BottomHalf(msgspec.Struct, frozen=True, kw_only=True):
    """A QEMUBH that is on its context's list; `flags` are QEMU's words (pending, scheduled, deleted, oneshot, idle)."""

    address: int
    name: str
    callback: str
    flags: tuple[str, ...]


class Handler(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An AioHandler. `polled` says whether any thread's poll or epoll set has its fd; None when that is not known."""

    fd: int
    events: int
    read: str = ""
    write: str = ""
    poll: str = ""
    opaque: int = 0
    polled: bool | None = None


class ThreadPool(msgspec.Struct, frozen=True, kw_only=True):
    """An AioContext's worker threads. `queued`, `active` and `done` count its requests by state."""

    address: int
    cur_threads: int
    idle_threads: int
    new_threads: int
    pending_threads: int
    max_threads: int
    queued: int
    active: int
    done: int
    functions: dict[str, int]


class LinuxAio(msgspec.Struct, frozen=True, kw_only=True):
    """A LinuxAioState. `ring` is the io_context_t, which is the address of its completion ring."""

    address: int
    ring: int
    event_fd: int
    in_queue: int
    in_flight: int
    blocked: bool
    pending: tuple[int, ...]
    plugged: int | None = None


class Uring(msgspec.Struct, frozen=True, kw_only=True):
    """A LuringState (until QEMU 10.1); later its requests go through the event loop's own ring."""

    address: int
    ring_fd: int
    in_queue: int
    in_flight: int
    blocked: bool
    queued: tuple[int, ...]
    plugged: int | None = None


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """An AioContext. `name` is `main`, `iohandler` or the iothread's id; `tid` is who runs it, 0 if unknown."""

    address: int
    name: str
    tid: int
    notify_me: int
    notified: bool | None
    notifier_fd: int
    event_loop: str
    event_loop_ring_fd: int | None
    poll_started: bool | None
    external_disabled: int | None
    graph_readers: int | None
    bottom_halves: tuple[BottomHalf, ...]
    scheduled_coroutines: tuple[int, ...]
    timers: tuple[Timer, ...]
    handlers: tuple[Handler, ...]
    thread_pool: ThreadPool | None = None
    linux_aio: LinuxAio | None = None
    uring: Uring | None = None


class ThreadLocals(msgspec.Struct, frozen=True, kw_only=True):
    """One thread's own variables: the context that it runs, the coroutine that it is in, QEMU's flag for the BQL.

    `has_bql` stays set while the thread sleeps on a condition, which drops the lock: locks.json tells who owns it.
    """

    tid: int
    context: int
    coroutine: int
    has_bql: bool | None


class GraphLock(msgspec.Struct, frozen=True, kw_only=True):
    """The block graph's lock (since QEMU 8.0)."""

    has_writer: bool
    orphaned_readers: int
    waiting_readers: tuple[int, ...]
