"""Device models: kicks that are not seen, interrupts that are not taken, the LSI controller, IDE's trim."""

from __future__ import annotations

from collections.abc import Iterator

from autopsy.bundle.heap import devices
from autopsy.diagnose.queries.notifiers import eventfd_of, idle_queues, unseen_notifiers
from autopsy.diagnose.queries.requests import confidence, still, their_disks
from autopsy.diagnose.queries.threads import functions, threads
from autopsy.diagnose.queries.untaken import Untaken, untaken
from autopsy.diagnose.queries.wording import count, missing
from autopsy.diagnose.signature import CannotTell, Judgement, Match, RuledOut, Signature, claim
from autopsy.facts import subjects
from autopsy.facts.cite import Cite, Known, Unknown
from autopsy.facts.model.facts import Descriptor, Facts, Park, Queues

HEAP_MISSING = "heap.json (QEMU's DWARF: `autopsy examine BUNDLE --debug-file F`)"


def _missing_queues(facts: Facts) -> str:
    """Say what is missing of the virtqueues in both snapshots; empty where nothing is."""
    if isinstance(facts.virtqueues, Unknown):
        return f"{missing(facts.virtqueues)}; {HEAP_MISSING}"
    again = facts.virtqueues.value.second
    return f"the virtqueues in both snapshots: {missing(again)}" if isinstance(again, Unknown) else ""


def _heard(facts: Facts, fd: Descriptor) -> bool | None:
    """Tell whether a thread slept on an eventfd at any look, None where an io_uring may poll it and tells nobody."""
    known = facts.virtqueues.value.notifier(fd.fd) if isinstance(facts.virtqueues, Known) else None
    looks = (bool(fd.polled_by),) if known is None else (bool(fd.polled_by), known.polled, known.polled_again)
    return True if True in looks else None if None in looks else False


def _stays(facts: Facts, fd: Descriptor | None) -> bool:
    """Tell whether an eventfd counts something, and did so at every look."""
    if fd is None or not fd.counter:
        return False
    known = facts.virtqueues.value.notifier(fd.fd) if isinstance(facts.virtqueues, Known) else None
    return known is None or 0 not in {known.count, known.count_again}


def _polled(facts: Facts, queue: devices.VirtQueue) -> bool | None:
    """Tell whether an event loop polls a queue by itself, as it may with the guest's kicks switched off."""
    if isinstance(facts.heap, Known):
        return any(context.poll_started for context in facts.heap.value.contexts)
    fd = eventfd_of(facts, queue.host_notifier_fd)
    # A loop that sleeps on a queue's notifier has ended its polling before.
    return False if fd is not None and _heard(facts, fd) else None


def _notify_off(facts: Facts) -> Judgement:
    if isinstance(facts.virtqueues, Unknown) or _missing_queues(facts):
        return CannotTell(_missing_queues(facts))
    quiet = [(queue, _polled(facts, queue)) for queue in idle_queues(facts) if not queue.notification]
    silent = [queue for queue, polled in quiet if polled is False]
    if not silent and None in {polled for _, polled in quiet}:
        return CannotTell(f"whether an event loop polls the queues whose kicks are off: {HEAP_MISSING}")
    if not silent:
        return RuledOut("no idle disk queue has its notifications switched off", (facts.virtqueues.cite,))
    queue = silent[0]
    return Match(
        headline=f"Queue {queue.index} of {queue.device} has the guest's kicks switched off, and nobody polls it",
        objects=tuple(dict.fromkeys(subjects.Device(virtqueue.device) for virtqueue in silent)),
        confidence="likely",
        claims=(
            claim(
                f"Virtqueue {queue.index} of {queue.device}: notification is off, nothing is in use, no loop polls; "
                "the same in "
                "both snapshots.",
                facts.virtqueues.cite,
            ),
        ),
        weight=len(silent),
    )


def _kick_lost(facts: Facts) -> Judgement:  # noqa: PLR0911 - one answer for each thing that may be missing
    if isinstance(facts.virtqueues, Unknown) or _missing_queues(facts):
        return CannotTell(_missing_queues(facts))
    if isinstance(facts.polls, Unknown):
        return CannotTell(f"the threads' poll sets: {missing(facts.polls)}")
    if unseen := unseen_notifiers(facts):
        return CannotTell(f"the descriptors {', '.join(map(str, unseen))} (evidence/proc.fds/fds.txt)")
    lost = tuple(_pending(facts, heard=False))
    if lost:
        return _unheard(facts.polls.cite, lost)
    if waiting := untaken(facts, idle_queues(facts)):
        return _never_told(facts.virtqueues.value, waiting)
    if unclear := tuple(str(fd.fd) for _, fd in _pending(facts, heard=None)):
        return CannotTell(f"who polls eventfd {', '.join(unclear)}: io_uring tells nobody")
    return RuledOut("no kick of a disk's queue lies in an eventfd that nobody polls", (facts.virtqueues.cite,))


def _pending(facts: Facts, *, heard: bool | None) -> Iterator[tuple[devices.VirtQueue, Descriptor]]:
    """Yield the idle queues whose eventfd has counted kicks all the time, and is heard like that."""
    for queue in idle_queues(facts):
        fd = eventfd_of(facts, queue.host_notifier_fd)
        if fd is None or queue.host_notifier_enabled is False or not _stays(facts, fd):
            continue
        if _heard(facts, fd) is heard:
            yield queue, fd


def _unheard(polls: Cite, lost: tuple[tuple[devices.VirtQueue, Descriptor], ...]) -> Match:
    queue, fd = lost[0]
    return Match(
        headline=f"The guest kicked queue {queue.index} of {queue.device}, and no thread listens",
        objects=tuple(dict.fromkeys(subjects.Device(virtqueue.device) for virtqueue, _ in lost)),
        confidence="likely",
        claims=(
            claim(
                f"Eventfd {fd.fd} counts {fd.counter} kicks and is in no thread's poll set.",
                fd.cite,
                polls,
            ),
        ),
        weight=len(lost),
    )


def _never_told(queues: Queues, waiting: tuple[Untaken, ...]) -> Match:
    queue, requests = waiting[0].queue, waiting[0].requests
    return Match(
        headline=(
            f"{count(requests, 'request waits', 'requests wait')} in queue {queue.index} of {queue.device}, and no "
            "kick tells QEMU of it"
        ),
        objects=tuple(dict.fromkeys(subjects.Device(ring.queue.device) for ring in waiting)),
        confidence="likely",
        claims=(
            claim(
                f"The guest is {requests} ahead of QEMU in that ring, from before the second snapshot until after it.",
                queues.words_cite,
                queues.cite,
            ),
            claim(
                f"Eventfd {queue.host_notifier_fd}, by which the guest kicks, was empty at both looks: the kick was "
                "lost, or the guest never gave it.",
                queues.cite,
            ),
        ),
        weight=sum(ring.requests for ring in waiting),
    )


def _interrupt(facts: Facts) -> Judgement:
    if isinstance(facts.virtqueues, Unknown) or _missing_queues(facts):
        return CannotTell(_missing_queues(facts))
    if unseen := unseen_notifiers(facts):
        return CannotTell(f"the descriptors {', '.join(map(str, unseen))} (evidence/proc.fds/fds.txt)")
    pending = []
    for queue in idle_queues(facts):
        fd = eventfd_of(facts, queue.guest_notifier_fd)
        if fd is not None and _stays(facts, fd) and queue.used_idx == queue.signalled_used:
            pending.append((queue, fd))
    if not pending:
        return RuledOut("no interrupt of a disk's queue waits to be taken", (facts.virtqueues.cite,))
    queue, fd = pending[0]
    return Match(
        headline=(
            f"QEMU ended the requests of queue {queue.index} of {queue.device}; the guest has not taken the interrupt"
        ),
        objects=tuple(dict.fromkeys(subjects.Device(virtqueue.device) for virtqueue, _ in pending)),
        confidence="likely",
        claims=(
            claim(f"Eventfd {fd.fd} counts {fd.counter} interrupts that KVM has not delivered.", fd.cite),
            claim("Nothing is in use in that queue: QEMU owes the guest nothing.", facts.virtqueues.cite),
        ),
        weight=len(pending),
    )


def _lsi_leak(facts: Facts) -> Judgement:
    if isinstance(facts.heap, Unknown):
        return CannotTell(f"the LSI controller's state: {HEAP_MISSING}")
    controllers = facts.heap.value.lsi
    leaked = [controller for controller in controllers if controller.reentrancy_level]
    inside = any("lsi_execute_script" in functions(thread) for thread in threads(facts))
    if not leaked or inside:
        words = "there is no LSI controller" if not controllers else "its reentrancy counter is at rest"
        return RuledOut(words, (facts.heap.cite,))
    controller = leaked[0]
    return Match(
        headline=f"LSI controller {controller.device} has lost count of its own reentrancy "
        f"({controller.reentrancy_level})",
        objects=(subjects.Device(controller.device),),
        confidence="likely" if (controller.reentrancy_level or 0) <= 8 else "proven",
        claims=(
            claim(
                f"lsi_execute_script's counter is {controller.reentrancy_level} and no thread is inside of it: above 8 "
                "the controller runs no script any more.",
                facts.heap.cite,
            ),
        ),
        beside=(controller.reentrancy_level or 0) <= 8,
        weight=1,
    )


def _lsi_waits(facts: Facts) -> Judgement:
    if isinstance(facts.heap, Unknown):
        return CannotTell(f"the LSI controller's state: {HEAP_MISSING}")
    if not facts.heap.value.lsi:
        return RuledOut("there is no LSI controller", (facts.heap.cite,))
    idle = {backend.device for backend in facts.heap.value.backends if backend.in_flight == 0}
    stuck = [
        controller
        for controller in facts.heap.value.lsi
        if controller.current is None and any(one.pending for one in controller.queue)
    ]
    if not stuck or not idle:
        return RuledOut("no request of the LSI controller waits for a reselection", (facts.heap.cite,))
    later = (
        {controller.device: controller for controller in facts.heap_again.value.lsi}
        if isinstance(facts.heap_again, Known)
        else {}
    )
    still_there = [
        controller
        for controller in stuck
        if controller.device in later and later[controller.device].queue == controller.queue
    ]
    if not still_there:
        return (
            CannotTell("a second snapshot with the heap: whether the controller goes on")
            if not later
            else RuledOut("the LSI controller's queue moved between the snapshots", (facts.heap.cite,))
        )
    controller = still_there[0]
    return Match(
        headline=(
            f"LSI controller {controller.device} has ended requests whose reselection never comes (it waits for "
            f"{controller.waiting})"
        ),
        objects=(subjects.Device(controller.device),),
        confidence="likely",
        claims=(
            claim(
                f"{len([one for one in controller.queue if one.pending])} requests are pending in its queue, none is "
                "current, and the "
                "block layer holds none: the device model or the guest's driver owes the next step.",
                facts.heap.cite,
            ),
        ),
        weight=len(controller.queue),
    )


def _ide_trim(facts: Facts) -> Judgement:
    if isinstance(facts.coroutines, Unknown):
        return CannotTell(f"the parked coroutines: {missing(facts.coroutines)}")
    drained = [
        request
        for request in still(facts, Park.DRAINED)
        if any(f.function == "blk_co_pdiscard" for f in request.frames)
    ]
    if not drained:
        return RuledOut("no discard is queued behind a drain", (facts.coroutines.cite,))
    if isinstance(facts.main_loop, Unknown):
        return CannotTell(f"what the main thread does: {missing(facts.main_loop)}")
    if facts.main_loop.value.state != "nested poll":
        return RuledOut("no drain is under way", (facts.main_loop.value.cite,))
    return Match(
        headline="A drain waits for a TRIM whose next discard is queued because of the drain",
        objects=their_disks(facts, drained),
        confidence="likely",
        claims=(
            claim("A discard is parked in blk_wait_while_drained.", *(request.cite for request in drained[:3])),
            claim("The main thread drains.", facts.main_loop.value.cite),
        ),
        weight=len(drained) + 1,
    )


def _broken(facts: Facts) -> Judgement:
    if isinstance(facts.virtqueues, Unknown):
        return CannotTell(f"the virtio devices of the guest's disks: {missing(facts.virtqueues)}")
    queues = facts.virtqueues.value
    if not queues.broken:
        return RuledOut("no virtio disk or controller is marked broken", (queues.cite,))
    names = sorted(queues.broken)
    still = queues.still_broken.issuperset(names)
    return Match(
        headline=f"{count(len(names), 'virtio device')} {'are' if len(names) > 1 else 'is'} marked broken "
        f"({', '.join(names[:6])}): the guest's driver put into a queue what cannot be, and QEMU serves none of its "
        "queues until the guest resets it",
        objects=tuple(map(subjects.Device, names)),
        confidence=confidence(proven=still),
        claims=(
            claim(
                f"VirtIODevice.broken is set in {', '.join(names[:6])}{' in both snapshots' if still else ''}.",
                queues.devices_cite,
            ),
        ),
        weight=len(names),
    )


SIGNATURES = (
    Signature("virtio-device-broken", "device", "a virtio device is marked broken", _broken),
    Signature("ide-trim-drain-deadlock", "device", "an IDE or AHCI TRIM and a drain wait for each other", _ide_trim),
    Signature("virtqueue-notify-off", "device", "a virtqueue's kicks are switched off", _notify_off),
    Signature("virtqueue-kick-lost", "device", "a virtqueue's kick is heard by nobody", _kick_lost),
    Signature("virtqueue-interrupt-lost", "guest", "the guest does not take a disk's interrupt", _interrupt),
    Signature("lsi-reentrancy-leak", "device", "the LSI controller's reentrancy counter leaked", _lsi_leak),
    Signature("lsi-reselect-lost", "device", "the LSI controller does not reselect", _lsi_waits),
)
