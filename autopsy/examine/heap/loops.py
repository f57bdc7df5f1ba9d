"""Walk the event loops: AioContexts with what they still have to do, and the engines that do I/O for them."""

from __future__ import annotations

from collections.abc import Iterator

import drgn

from autopsy.bundle.heap.loops import BottomHalf, Context, Handler, LinuxAio, ThreadPool, Timer, Uring
from autopsy.examine.heap.block import block_backends, block_states
from autopsy.examine.heap.shape import MOST_ELEMENTS, Walk, cast, flag, member, number, pointer, string, word

BH_FLAGS = ("pending", "scheduled", "deleted", "oneshot", "idle")  # BH_* of util/async.c, bit by bit


def contexts(walk: Walk, runners: dict[int, int]) -> tuple[Context, ...]:
    """Return every AioContext; `runners` says which thread runs which."""
    aio_contexts: list[Context] = []
    addresses = _addresses(walk)
    main = next(
        (runners[address] for address in addresses if walk.context_names.get(address) == "main" and address in runners),
        0,
    )
    for address in addresses:
        runner = main if walk.context_names.get(address) == "iohandler" else runners.get(address, 0)
        with walk.reading(f"AioContext at {address:#x}"):
            aio_contexts.append(_context(walk, cast(walk.program, "AioContext", address), runner))
    return tuple(aio_contexts)


def main_timers(walk: Walk) -> tuple[Timer, ...]:
    """Return the armed timers of the main loop that belong to no AioContext."""
    group = walk.variable("main_loop_tlg")
    return () if group is None else tuple(_timers(walk, group, 0))


def _addresses(walk: Walk) -> list[int]:
    """Return the address of every AioContext: each has timer lists that tell of it, whether it has a disk or not."""
    addresses: dict[int, None] = {}
    for name, label in (("qemu_aio_context", "main"), ("iohandler_ctx", "iohandler")):
        context = walk.variable(name)
        if context is not None and pointer(context):
            addresses[pointer(context)] = None
            walk.context_names[pointer(context)] = label
    with walk.reading("the clocks' timer lists"):
        notify = walk.program.symbol("aio_timerlist_notify").address
        clocks = walk.variable("qemu_clocks")
        for clock in () if clocks is None else clocks:
            for timers in walk.chain("timer lists", clock.timerlists, "list"):
                if pointer(timers.notify_cb) == notify and pointer(timers.notify_opaque):
                    addresses[pointer(timers.notify_opaque)] = None
    for user, name in ((block_backends(walk), "ctx"), (block_states(walk), "aio_context")):
        for element in user:
            with walk.reading("the AioContext of a disk"):
                if pointer(element.member_(name)):
                    addresses[pointer(element.member_(name))] = None
    return list(addresses)


def _context(walk: Walk, context: drgn.Object, runner: int) -> Context:
    address = pointer(context)
    name = walk.context_names.get(address, "")
    what = f"AioContext {name or hex(address)}"
    walk.knows(what, context, "lock")  # taken until v8.2; a member that nobody takes since
    graph = member(context, "bdrv_graph")
    ring = member(context, "fdmon_io_uring")
    loop = walk.function(pointer(context.fdmon_ops)).removeprefix("fdmon_").removesuffix("_ops")
    return Context(
        address=address,
        name=name,
        tid=runner,
        notify_me=int(context.notify_me),
        notified=flag(context, "notified"),
        notifier_fd=int(context.notifier.rfd),
        event_loop=loop,
        event_loop_ring_fd=int(ring.ring_fd) if ring is not None and "io_uring" in loop else None,
        poll_started=flag(context, "poll_started"),
        # Gone since aio_disable_external() was removed (in v8.1).
        external_disabled=number(context, "external_disable_cnt"),
        graph_readers=int(graph.reader_count) if graph is not None and pointer(graph) else None,
        bottom_halves=tuple(_bottom_halves(walk, what, context)),
        scheduled_coroutines=tuple(
            pointer(co)
            for co in walk.chain(f"{what}: scheduled coroutines", context.scheduled_coroutines, "co_scheduled_next")
        ),
        timers=tuple(_timers(walk, context.tlg, address)),
        handlers=tuple(_handlers(walk, what, context)),
        thread_pool=walk.value(f"{what}: thread pool", lambda walk: _thread_pool(walk, context), None),
        linux_aio=walk.value(f"{what}: Linux AIO", lambda walk: _linux_aio(walk, context), None),
        uring=walk.value(f"{what}: io_uring", lambda walk: _uring(walk, context), None),
    )


def _bottom_halves(walk: Walk, what: str, context: drgn.Object) -> Iterator[BottomHalf]:
    lists = [context.bh_list]
    slices = member(context, "bh_slice_list")  # what an outer aio_poll has still to run while a bottom half polls
    if slices is not None:
        lists.extend(piece.bh_list for piece in walk.chain(f"{what}: bottom half slices", slices, "next"))
    for head in lists:
        for half in walk.chain(f"{what}: bottom halves", head, "next"):
            with walk.reading(f"bottom half at {pointer(half):#x}"):
                flags = int(half.flags)
                callback = walk.function(pointer(half.cb))
                yield BottomHalf(
                    address=pointer(half),
                    # Named since v6.2 (for tracing and leak checks).
                    name=_name(half) or callback,
                    callback=callback,
                    flags=tuple(word for bit, word in enumerate(BH_FLAGS) if flags & 1 << bit),
                )


def _name(half: drgn.Object) -> str:
    name = member(half, "name")
    if name is None or not pointer(name):
        return ""
    try:
        return string(name)
    except drgn.FaultError:  # a constant of a binary that is gone
        return ""


def _timers(walk: Walk, group: drgn.Object, context: int) -> Iterator[Timer]:
    for timers in group.tl:
        if not pointer(timers):
            continue
        with walk.reading(f"timers at {pointer(timers):#x}"):
            walk.knows(f"timers of {walk.context_names.get(context, hex(context))}", timers, "active_timers_lock")
            timer = timers.active_timers
            seen: set[int] = set()
            while pointer(timer) and pointer(timer) not in seen and len(seen) < MOST_ELEMENTS:
                seen.add(pointer(timer))
                if (record := walk.timer(timer, context)) is not None:
                    yield record
                timer = timer.next
            if len(seen) == MOST_ELEMENTS and pointer(timer):
                walk.bound_bit(f"timers at {pointer(timers):#x}")


def _handlers(walk: Walk, what: str, context: drgn.Object) -> Iterator[Handler]:
    for handler in walk.chain(f"{what}: handlers", context.aio_handlers, "node"):
        with walk.reading(f"handler at {pointer(handler):#x}"):
            fd = int(handler.pfd.fd)
            yield Handler(
                fd=fd,
                events=int(handler.pfd.events),
                read=walk.function(pointer(handler.io_read)),
                write=walk.function(pointer(handler.io_write)),
                poll=walk.function(pointer(handler.io_poll)),
                opaque=pointer(handler.opaque),
                polled=True if fd in (walk.polled or ()) else None if walk.polled is None or walk.rings_poll else False,
            )


def _thread_pool(walk: Walk, context: drgn.Object) -> ThreadPool | None:
    # A ThreadPoolAio since v10.0 (the name ThreadPool now means another thing); a ThreadPool before that.
    pool = context.thread_pool
    if not pointer(pool):
        return None
    walk.knows(f"thread pool of {walk.context_names.get(pointer(context), hex(pointer(context)))}", pool, "lock")
    states = {"queued": 0, "active": 0, "done": 0}
    functions: dict[str, int] = {}
    for element in walk.chain("requests of a thread pool", pool.head, "all"):
        with walk.reading(f"thread pool request at {pointer(element):#x}"):
            state = word(element.state, "THREAD_")
            states[state] = states.get(state, 0) + 1
            function = walk.function(pointer(element.func))
            functions[function] = functions.get(function, 0) + 1
    return ThreadPool(
        address=pointer(pool),
        cur_threads=int(pool.cur_threads),
        idle_threads=int(pool.idle_threads),
        new_threads=int(pool.new_threads),
        pending_threads=int(pool.pending_threads),
        max_threads=int(pool.max_threads),
        queued=states["queued"],
        active=states["active"],
        done=states["done"],
        functions=functions,
    )


def _linux_aio(walk: Walk, context: drgn.Object) -> LinuxAio | None:
    state = member(context, "linux_aio")
    if state is None or not pointer(state):
        return None
    queue = state.io_q
    return LinuxAio(
        address=pointer(state),
        ring=pointer(state.ctx),
        event_fd=int(state.e.rfd),
        in_queue=int(queue.in_queue),
        in_flight=int(queue.in_flight),
        blocked=bool(queue.blocked),
        pending=tuple(pointer(request.co) for request in walk.chain("Linux AIO queue", queue.pending, "next")),
        plugged=number(queue, "plugged"),  # gone in v8.1, when defer_call took its place
    )


def _uring(walk: Walk, context: drgn.Object) -> Uring | None:
    state = member(context, "linux_io_uring")  # gone in v10.2, when requests moved to the event loop's ring
    if state is None or not pointer(state):
        return None
    queue = state.io_q
    return Uring(
        address=pointer(state),
        ring_fd=int(state.ring.ring_fd),
        in_queue=int(queue.in_queue),
        in_flight=int(queue.in_flight),
        blocked=bool(queue.blocked),
        queued=tuple(pointer(request.co) for request in walk.chain("io_uring queue", queue.submit_queue, "next")),
        plugged=number(queue, "plugged"),
    )
