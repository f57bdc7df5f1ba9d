"""The AIO engines: io_submit that blocks, completions that nobody takes, work that never starts."""

from __future__ import annotations

from autopsy.bundle.syscalls import REQUEST_CALLS
from autopsy.diagnose.queries.below import about_devices, layers_of, stands_below
from autopsy.diagnose.queries.engines import (
    done_in_the_pool,
    held_loops,
    never_submitted,
    unsent_rings,
    untaken_completions,
)
from autopsy.diagnose.queries.kernel_sleepers import sleepers
from autopsy.diagnose.queries.requests import (
    confidence,
    counted,
    of_disks,
    stand,
    standing,
    still,
    their_disks,
)
from autopsy.diagnose.queries.threads import blocks_main_loop, functions, looks, named, slept_through, threads
from autopsy.diagnose.queries.wording import count, missing
from autopsy.diagnose.signature import CannotTell, Judgement, Match, RuledOut, Signature, claim
from autopsy.facts import subjects
from autopsy.facts.cite import Cite, Known, Unknown
from autopsy.facts.model.facts import Facts, Park, RingsFact, Role, ThreadFact

MOST_WORKERS = 64  # of one AioContext, unless thread-pool-max says otherwise


def _io_submit(facts: Facts) -> Judgement:
    if isinstance(facts.threads, Unknown):
        return CannotTell("the threads' system calls (evidence/witness/tasks.txt)")
    inside = [thread for thread in threads(facts) if _submits(thread)]
    blocked = [thread for thread in inside if slept_through(thread) is not False]
    if not blocked:
        words = "the threads in io_submit went on" if inside else "no thread is in io_submit"
        return RuledOut(words, tuple(looks(thread)[0].cite for thread in inside[:3]) or (facts.threads.cite,))
    tids = [thread.tid for thread in blocked]
    whole = ", with the main loop behind it" if blocks_main_loop(facts, tids) else ""
    with_stack = [thread for thread in blocked if looks(thread)[0].kernel_stack]
    frames = [thread.frames.cite for thread in blocked if isinstance(thread.frames, Known)]
    return Match(
        headline=f"io_submit blocks in {named(blocked[0])}{whole}: aio=native submits in the caller's thread",
        objects=tuple(subjects.thread(thread) for thread in blocked[:4]),
        confidence=confidence(proven=any(slept_through(thread) for thread in blocked)),
        claims=(
            *(
                claim(
                    f"{named(thread)} is in io_submit, State {looks(thread)[0].state}"
                    f"{', under ' + looks(thread)[0].kernel_stack[0] if looks(thread)[0].kernel_stack else ''}.",
                    looks(thread)[0].cite,
                    looks(thread)[0].stack_cite,
                )
                for thread in blocked[:4]
            ),
            *((claim("Its frames go through QEMU's Linux AIO engine.", *frames[:2]),) if frames else ()),
        ),
        effect=not with_stack,
        weight=len(blocked),
    )


def _submits(thread: ThreadFact) -> bool:
    return any(look.syscall.name == "io_submit" or "io_submit_one" in look.kernel_stack for look in looks(thread)[:1])


def _not_reaped(facts: Facts) -> Judgement:
    """Completions that lie in a ring through both looks, while requests wait for them."""
    if isinstance(facts.rings, Unknown):
        return CannotTell(f"the completion rings: {missing(facts.rings)}")
    rings = facts.rings.value
    full, uring = untaken_completions(rings)
    waiting = still(facts, Park.LINUX_AIO, Park.IO_URING)
    if not full and not uring:
        return RuledOut("every completion ring was empty, or was emptied between the looks", (rings.cite,))
    if not rings.both:
        return CannotTell("a second look at the completion rings (evidence/second-exposure/rings.json)")
    if isinstance(facts.coroutines, Known) and not waiting:
        return RuledOut("completions lie in a ring, but no request waits for them", (rings.cite,))
    number = sum((ring.tail - ring.head) % max(1, ring.entries) for ring in full)
    number += sum(((ring.cq_tail or 0) - (ring.cq_head or 0)) % 2**32 for ring in uring)
    disks = their_disks(facts, waiting)
    return Match(
        headline=f"{count(number, 'completion')} lie in the kernel's ring and nobody takes them {of_disks(disks)}",
        objects=disks,
        confidence="likely" if isinstance(facts.coroutines, Unknown) else "proven",
        claims=(
            claim(
                (f"{count(number, 'completion')} lay in the ring at both looks, and its head did not move."), rings.cite
            ),
            *(
                (claim(f"{counted(facts, waiting)} wait for them.", *(request.cite for request in waiting[:4])),)
                if waiting
                else ()
            ),
        ),
        stands=stand((Park.LINUX_AIO, Park.IO_URING), waiting, map(subjects.thread, held_loops(facts))),
        effect=bool(held_loops(facts)) and not waiting,  # whether a request waits for them is not known then
        weight=number,
    )


def _in_kernel(facts: Facts) -> Judgement:
    """Requests that the kernel has and does not complete: Linux AIO and io_uring need no thread for them."""
    waiting = standing(facts, (Park.LINUX_AIO, Park.IO_URING))
    if isinstance(waiting, Unknown):
        return CannotTell(f"the parked coroutines: {missing(waiting)}")
    cites = (facts.coroutines.cite,) if isinstance(facts.coroutines, Known) else ()
    if not waiting.requests:
        words = (
            "the requests that wait for Linux AIO or io_uring go on" if waiting.moving else ("no request waits for it")
        )
        return RuledOut(words, tuple(request.cite for request in waiting.moving[:4]) or cites)
    if isinstance(facts.rings, Unknown):
        return CannotTell(f"whether the kernel has completed them: {missing(facts.rings)}")
    rings = facts.rings.value
    if why := _elsewhere(facts, rings):
        return RuledOut(why, (rings.cite,))
    disks = their_disks(facts, waiting.requests)
    uring = any(request.park is Park.IO_URING for request in waiting.requests)
    busy = [device for device in _devices(facts) if device[1] > 0]
    claims = [
        claim(f"{waiting.counted()} {of_disks(disks)} wait for the kernel.", *waiting.cites),
        claim("The completion rings are empty: the kernel has not finished them.", rings.cite),
    ]
    claims += [
        claim((f"The host counts {number} requests in flight on {name}."), cite) for name, number, cite in busy[:3]
    ]
    sure = not uring or _heap_counts(facts)
    devices = tuple(subjects.HostDevice(name) for name, _, _ in busy[:3])
    claims += about_devices(facts, devices)
    between = [layer for layer in layers_of(facts, devices) if stands_below(facts, layer)]
    at = (
        f": {between[0].loop} waits for the file system {between[0].mount.path} that its data lies on"
        if between
        else ""
    )
    return Match(
        headline=f"{waiting.counted()} {of_disks(disks)} are in the host's kernel, which does not end them{at}",
        objects=(*disks, *devices, *(subjects.file_system(layer.mount) for layer in between)),
        confidence=confidence(proven=waiting.proven and sure),
        claims=tuple(claims),
        stands=stand((Park.LINUX_AIO, Park.IO_URING), waiting.requests),
        weight=len(waiting.requests),
        where="host",
    )


def _elsewhere(facts: Facts, rings: RingsFact) -> str:
    """Say where the requests are if the kernel has none of them, empty where it has them."""
    completed = any(ring.head != ring.tail for ring in rings.aio_again)
    if completed or any(ring.cq_head != ring.cq_tail for ring in rings.uring_again):
        return "the kernel has completed requests that QEMU has not taken"
    if any(ring.sq_head != ring.sq_tail for ring in rings.uring_again):
        return "the kernel has not been given some of the requests"
    queued = never_submitted(facts)
    return f"QEMU has not handed them to the kernel: {queued} in its own queue" if queued else ""


def _devices(facts: Facts) -> list[tuple[str, int, Cite]]:
    devices = facts.host.block_devices
    return (
        [(device.name, device.in_flight, device.cite) for device in devices.value] if isinstance(devices, Known) else []
    )


def _heap_counts(facts: Facts) -> bool:
    return isinstance(facts.heap, Known) and any(
        (context.uring and context.uring.in_flight > 0) or (context.linux_aio and context.linux_aio.in_flight > 0)
        for context in facts.heap.value.contexts
    )


def _not_submitted(facts: Facts) -> Judgement:
    waiting = standing(facts, (Park.LINUX_AIO, Park.IO_URING))
    if isinstance(waiting, Unknown):
        return CannotTell(f"the parked coroutines: {missing(waiting)}")
    if not waiting.requests:
        return RuledOut("no request waits for Linux AIO or io_uring")
    unsent = unsent_rings(facts.rings.value) if isinstance(facts.rings, Known) else ()
    queued = never_submitted(facts)
    if not queued and not (unsent and isinstance(facts.rings, Known) and facts.rings.value.both):
        if isinstance(facts.heap, Unknown):
            return CannotTell("QEMU's own submission queue: heap.json (`autopsy examine BUNDLE --debug-file F`)")
        return RuledOut(
            ("QEMU's own submission queues are empty, or are flushed by requests in flight"), (facts.heap.cite,)
        )
    disks = their_disks(facts, waiting.requests)
    cites = [fact.cite for fact in (facts.heap, facts.rings) if isinstance(fact, Known)]
    return Match(
        headline=f"{waiting.counted()} {of_disks(disks)} were never handed to the kernel",
        objects=disks,
        confidence=confidence(proven=waiting.proven),
        claims=(
            claim(f"{waiting.counted()} wait for the AIO engine.", *waiting.cites),
            claim(
                f"{queued or len(unsent)} lie in a submission queue with nothing in flight that would flush it.",
                *cites,
            ),
        ),
        stands=stand((Park.LINUX_AIO, Park.IO_URING), waiting.requests),
        weight=len(waiting.requests),
    )


def _pool_exhausted(facts: Facts) -> Judgement:
    if isinstance(facts.heap, Known):
        pools = [context.thread_pool for context in facts.heap.value.contexts if context.thread_pool]
        full = any(pool.cur_threads >= pool.max_threads and pool.queued and not pool.idle_threads for pool in pools)
        cites = (facts.heap.cite,)
    elif isinstance(facts.threads, Known):
        full = len([sleeper for sleeper in sleepers(facts) if sleeper.thread.role is Role.WORKER]) >= MOST_WORKERS
        cites = (facts.threads.cite,)
    else:
        return CannotTell("the worker threads (evidence/witness/tasks.txt)")
    if not full:
        return RuledOut("no pool of worker threads is used up", cites)
    waiting = still(facts, Park.THREADS)
    return Match(
        headline="Every worker thread of aio=threads is busy: new requests wait for one",
        objects=their_disks(facts, waiting),
        confidence=confidence(proven=isinstance(facts.heap, Known)),
        claims=(claim("The pool has its most threads, none idle, and requests in its queue.", *cites),),
        effect=True,
        weight=len(waiting),
    )


def _done_not_completed(facts: Facts) -> Judgement:
    """Requests wait for worker threads, and every worker is idle: their work is done, nobody was told."""
    waiting = standing(facts, (Park.THREADS,))
    if isinstance(waiting, Unknown):
        return CannotTell(f"the parked coroutines: {missing(waiting)}")
    if not waiting.requests:
        cites = (facts.coroutines.cite,) if isinstance(facts.coroutines, Known) else ()
        return RuledOut(
            ("no request waits for a worker thread"), tuple(request.cite for request in waiting.moving[:3]) or cites
        )
    if isinstance(facts.threads, Unknown):
        return CannotTell("what the worker threads do (evidence/witness/tasks.txt)")
    working = [thread for thread in threads(facts) if _works(thread)]
    if working:
        words = f"{count(len(working), 'worker')} are at work on requests"
        return RuledOut(words, tuple(looks(thread)[0].cite for thread in working[:4]))
    if not waiting.proven:
        return CannotTell("a second snapshot: whether the requests end by themselves")
    done = done_in_the_pool(facts)
    disks = their_disks(facts, waiting.requests)
    return Match(
        headline=(f"{waiting.counted()} {of_disks(disks)} wait for worker threads, and every worker is idle"),
        objects=disks,
        confidence="proven" if done else "likely",
        claims=(
            claim(f"{waiting.counted()} are parked in thread_pool_submit_co.", *waiting.cites),
            claim("No thread is inside a request's system call.", facts.threads.cite),
            *(
                (claim((f"The pool holds {done} requests that are done and were not completed."), _heap(facts)),)
                if done
                else ()
            ),
        ),
        stands=stand((Park.THREADS,), waiting.requests),
        weight=len(waiting.requests),
    )


def _works(thread: ThreadFact) -> bool:
    if thread.role not in {Role.WORKER, Role.OTHER}:
        return False
    inside = any(look.syscall.name in REQUEST_CALLS or look.state in {"R", "D"} for look in looks(thread))
    return inside or any(name.startswith(("handle_aiocb_", "aio_worker")) for name in functions(thread))


def _heap(facts: Facts) -> Cite:
    return facts.heap.cite if isinstance(facts.heap, Known) else Cite(facts.heap.evidence)


SIGNATURES = (
    Signature("io-submit-blocks", "aio", "io_submit blocks its caller (aio=native)", _io_submit),
    Signature("aio-completed-not-reaped", "aio", "completions lie in a ring and nobody takes them", _not_reaped),
    Signature("aio-never-submitted", "aio", "requests were never handed to the kernel", _not_submitted),
    Signature("aio-done-not-completed", "aio", "worker threads are done and nobody was told", _done_not_completed),
    Signature("aio-pool-exhausted", "aio", "the pool of worker threads is used up", _pool_exhausted),
    Signature("aio-in-kernel", "host", "the host's kernel does not end asynchronous requests", _in_kernel),
)
