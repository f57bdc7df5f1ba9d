"""What the collectors and examiners leave for the analyzer, as strict types.

These are measurements in a machine's form, not yet facts: no field says what a number means for the VM.
Addresses are integers; times are CLOCK_MONOTONIC in ns; an absent name is the empty string.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from autopsy.bundle.failing_file import FailingFile


class FutexWait(msgspec.Struct, frozen=True, kw_only=True):
    """A thread that sleeps in futex(2), with the words it sleeps on.

    `operation` and `value` are the call's second and third arguments; `words` is up to 40 bytes at `address`, little
    endian, hex; `lock`, `count`, `owner`, `users`, `kind` are those as glibc's pthread_mutex_t {int lock; unsigned
    count; int owner; unsigned nusers; int kind}: only where operation is FUTEX_WAIT_PRIVATE (0x80) and value 2.
    """

    tid: int
    address: int
    operation: int
    value: int
    words: str = ""
    lock: int = 0
    count: int = 0
    owner: int = 0
    users: int = 0
    kind: int = 0


class PollFd(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One struct pollfd as it lay in the target's memory."""

    fd: int
    events: int
    revents: int


class PollSet(msgspec.Struct, frozen=True, kw_only=True):
    """What a thread sleeps on in poll, ppoll, select or epoll_wait. `timeout_ns` is absent for an endless wait."""

    tid: int
    call: str
    epoll_fd: int | None = None
    timeout_ns: int | None = None
    fds: tuple[PollFd, ...] = ()
    truncated: bool = False


class Stop(msgspec.Struct, frozen=True, kw_only=True):
    """One stop of the whole VM: from the first PTRACE_INTERRUPT to the last PTRACE_DETACH."""

    start_ns: int
    end_ns: int


class FrozenThread(msgspec.Struct, frozen=True, kw_only=True):
    """How one thread's registers were had: `walked` without a stop, proven to have stood still by itself meanwhile.

    `from-proc` and `absent` explain themselves in `why`.
    """

    tid: int
    comm: str
    how: Literal["walked", "stopped", "from-proc", "absent"]
    why: str = ""
    stack_start: int = 0
    stack_bytes: int = 0


class Region(msgspec.Struct, frozen=True, kw_only=True):
    """A mapping that was left out of the core, and why."""

    start: int
    size: int
    path: str
    why: str


class FreezeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The split snapshot as it went. `torn_pages` differ between the copies before and after the stop.

    `beyond_cap` is evidence that was given up, for the core would have been too large; `coroutine_stacks` is how many
    mappings look like a coroutine's stack, all of them.
    """

    architecture: str
    page_size: int
    frozen_at_ns: int
    stops: tuple[Stop, ...]
    threads: tuple[FrozenThread, ...]
    left_out: tuple[Region, ...]
    copied_bytes: int
    core_bytes: int
    torn_pages: tuple[int, ...] = ()
    beyond_cap: tuple[Region, ...] = ()
    coroutine_stacks: int = 0
    phases_ms: dict[str, float] = {}
    notes: tuple[str, ...] = ()


class LeftOut(msgspec.Struct, frozen=True, kw_only=True):
    """What a limit of ours kept out of a step's evidence. `requests`: some that wait may be among it."""

    what: str
    why: str
    requests: bool = False


class QmpExchange(msgspec.Struct, frozen=True, kw_only=True):
    """One question and what became of it; the greeting is the question "(greeting)".

    `outcome`: `answered`, `error` (QEMU refused; `answer` holds its words), `no answer` (within `deadline_ms`),
    `skipped` (`why`), and for the greeting `greeted`, `busy` (`peer` holds the socket), `silent`, `refused`, `absent`.
    """

    question: str
    outcome: Literal["answered", "error", "no answer", "skipped", "greeted", "busy", "silent", "refused", "absent"]
    asked_ns: int
    ms: float
    deadline_ms: float
    monitor: str = ""
    arguments: dict[str, Any] = {}
    answer: Any = None
    why: str = ""
    peer: str = ""


class MainGlance(msgspec.Struct, frozen=True, kw_only=True):
    """The main thread at one moment. `owned` are mutexes that were its own while others were known to want them."""

    state: str
    call: str = ""
    waits_for_mutex: bool = False
    owned: tuple[int, ...] = ()


class GuardLook(msgspec.Struct, frozen=True, kw_only=True):
    """What the guard saw just before a question that can block; `moved` have run since the witness looked.

    `reasons` are why it refused; there are none when it let the question pass. `failing` are files of the VM whose
    storage answered with an error.
    """

    moved: tuple[int, ...]
    main: tuple[MainGlance, ...]
    reasons: tuple[str, ...] = ()
    failing: tuple[FailingFile, ...] = ()


class Frame(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One frame, innermost first in its stack.

    `function` is given only where a symbol covers the pc; otherwise `near` is the closest exported name below, in the
    same module, and `unwind_start` the module offset at which .eh_frame says that the nameless function starts
    (build-id + that offset names it for good once symbols are at hand).
    """

    pc: int
    function: str = ""
    near: str = ""
    module: str = ""
    offset: int = 0
    unwind_start: int = 0
    file: str = ""
    line: int = 0
    inlined: bool = False


class ThreadStack(msgspec.Struct, frozen=True, kw_only=True):
    """One thread's frames. `line` is where its part of backtrace.txt begins."""

    tid: int
    comm: str
    frames: tuple[Frame, ...]
    line: int = 0
    cut_short: str = ""


class Coroutine(msgspec.Struct, frozen=True, kw_only=True):
    """One coroutine as its Coroutine header and jmpbuf tell of it.

    `state`: `running` (entered: its frames belong to a thread), `parked`, `pooled` (ended, kept for reuse), `unclear`.
    `since_first`: `stuck` (same address, pc, sp and saved registers in both snapshots), `moved`, `new`, `gone`,
    `unknown` (there was one snapshot). `same_request` of one that moved: the request on its stack is as it was.
    """

    address: int
    stack: int
    stack_size: int
    state: Literal["running", "parked", "pooled", "unclear"]
    pc: int
    sp: int
    entry: int
    entry_argument: int
    caller: int
    context: int
    locks_held: int
    scheduled_by: str = ""
    backend: Literal["ucontext", "sigaltstack", "ucontext-safestack"] = "ucontext"
    frames: tuple[Frame, ...] = ()
    since_first: Literal["stuck", "moved", "new", "gone", "unknown"] = "unknown"
    line: int = 0
    why_unclear: str = ""
    same_request: bool = False


class Mutex(msgspec.Struct, frozen=True, kw_only=True):
    """A glibc mutex that some thread waits for. `place` is module+offset for a static one, `heap` otherwise."""

    address: int
    owner: int
    owner_comm: str
    kind: Literal["normal", "recursive", "errorcheck", "other"]
    count: int
    waiters: tuple[int, ...]
    place: str = ""
    is_bql: bool = False
    symbol: str = ""


class OtherWait(msgspec.Struct, frozen=True, kw_only=True):
    """A futex sleep that is no mutex: nobody owns the word."""

    tid: int
    address: int
    kind: Literal["condition or semaphore", "event", "rwlock or other"]
    place: str = ""


class CoMutex(msgspec.Struct, frozen=True, kw_only=True):
    """A coroutine mutex that parked coroutines wait for, by their addresses, first come first.

    `locked` counts its holder and those who wait; `holder` is a coroutine, 0 while the mutex is handed over.
    """

    address: int
    locked: int
    holder: int
    waiters: tuple[int, ...]
    place: str = ""


class Entered(msgspec.Struct, frozen=True, kw_only=True):
    """A coroutine that runs, and the thread whose stack it is on, or whose stack it has entered another one on."""

    coroutine: int
    tid: int


class LockGraph(msgspec.Struct, frozen=True, kw_only=True):
    """Who waits for whom. A cycle is listed once, from its smallest tid; a cycle of one is a self-deadlock.

    A coroutine waits for the holder of its CoMutex (`comutexes`), one that runs for its thread (`entered`), a thread
    for the owner of its mutex. `knots` are the cycles of coroutines, by address: no thread waits for a CoMutex.
    """

    mutexes: tuple[Mutex, ...]
    others: tuple[OtherWait, ...]
    cycles: tuple[tuple[int, ...], ...]
    bql_address: int = 0
    bql_owner: int = 0
    bql_how_found: str = ""
    notes: tuple[str, ...] = ()
    comutexes: tuple[CoMutex, ...] = ()
    entered: tuple[Entered, ...] = ()
    knots: tuple[tuple[int, ...], ...] = ()


class MainLoop(msgspec.Struct, frozen=True, kw_only=True):
    """What the main thread was doing, by its stack and the BQL's owner.

    `under` is the outermost function that polls inside the loop (`bdrv_drain_all_begin`), or the blocking system call;
    `path` is the file that such a call names.
    """

    tid: int
    state: Literal[
        "idle", "nested poll", "blocked in a system call", "waits for a mutex", "running", "stopped", "unknown"
    ]
    under: str = ""
    waits_for: int = 0
    waits_on_tid: int = 0
    why: str = ""
    command: str = ""
    path: str = ""


class WorkerThread(msgspec.Struct, frozen=True, kw_only=True):
    """One thread that does blocking I/O for QEMU: its own thread pool's, or io_uring's in the kernel (`iou-wrk`).

    `call` is the system call it was in, empty when it was in none or it is a kernel thread; `function` is QEMU's
    function for the work, where its stack names one.
    """

    tid: int
    comm: str
    doing: Literal["idle", "in a system call", "waits for a mutex", "running", "in the kernel"]
    call: str = ""
    state: str = ""
    wchan: str = ""
    function: str = ""


class EventFd(msgspec.Struct, frozen=True, kw_only=True):
    """One eventfd at both looks: how much nobody has read of it, and whether any thread's poll or epoll set has it.

    None is not known. A thread that ran at the time polled nothing, and KVM reads an eventfd without polling it.
    """

    fd: int
    count: int | None = None
    polled: bool | None = None
    count_again: int | None = None
    polled_again: bool | None = None


class Module(msgspec.Struct, frozen=True, kw_only=True):
    """One ELF file mapped by the target, and how well its names are known.

    `symbols`: `dwarf`, `symtab`, `dynsym`, `none`. `source` is where they came from.
    """

    path: str
    base: int
    end: int
    build_id: str
    symbols: Literal["dwarf", "symtab", "dynsym", "none"]
    source: str
    deleted: bool = False


class AioRing(msgspec.Struct, frozen=True, kw_only=True):
    """A Linux AIO completion ring (struct aio_ring, magic 0xa10a10a1): head != tail means completed, not reaped."""

    address: int
    context_id: int
    entries: int
    head: int
    tail: int
    valid: bool


class UringState(msgspec.Struct, frozen=True, kw_only=True):
    """An io_uring as its fdinfo tells of it; `raw` holds every field as printed."""

    fd: int
    raw: dict[str, str]
    sq_head: int | None = None
    sq_tail: int | None = None
    cq_head: int | None = None
    cq_tail: int | None = None


class Rings(msgspec.Struct, frozen=True, kw_only=True):
    """Every completion ring of the process at one moment."""

    aio: tuple[AioRing, ...]
    uring: tuple[UringState, ...]
    taken_ns: int


class SocketEnd(msgspec.Struct, frozen=True, kw_only=True):
    """One socket of the VM, or a pipe that it shares, and, where it is on this host, the other end of it.

    `state` is the kernel's word (ESTAB, LISTEN, SYN-SENT, …). `local` and `remote` are paths (`@name` for an abstract
    one) or address:port. Queues are bytes: `receive_queue` waits to be read by the VM, `send_queue` to be read or
    acknowledged by the other end; absent where the kernel did not tell. `peer_pids` hold the other end. One that is not
    `accepted` is connected to a socket that listens, and nobody has taken it there: `peer_pids` hold that.
    """

    fd: int
    inode: int
    family: Literal["unix", "tcp", "other", "pipe"]
    state: str = ""
    local: str = ""
    remote: str = ""
    receive_queue: int | None = None
    send_queue: int | None = None
    peer_inode: int | None = None
    peer_pids: tuple[int, ...] = ()
    accepted: bool = True


class LoopLayer(msgspec.Struct, frozen=True, kw_only=True):
    """A loop device below a file system (`above`, MAJ:MIN), and the host's file that it keeps its data in.

    `mount` is the line of the host's mountinfo that tells where this file lies.
    """

    above: str
    loop: str
    file: str
    mount: str
