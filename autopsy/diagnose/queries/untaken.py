"""Find requests that the guest has put into a ring, and that QEMU was never told of: both sleep, each for the other."""

from __future__ import annotations

from collections.abc import Iterable

from autopsy.bundle.heap.devices import VirtQueue
from autopsy.bundle.heap.virtio import RingWords
from autopsy.dataclass import dataclass
from autopsy.facts.cite import Known
from autopsy.facts.model.facts import Facts, Queues

INDICES = 1 << 16
EVENTS = 1  # the queue of a virtio SCSI controller in which the guest keeps empty buffers for events to come


@dataclass(frozen=True, slots=True)
class Untaken:
    """A queue, and how many requests in it QEMU has not taken between the looks."""

    queue: VirtQueue
    requests: int


def untaken(facts: Facts, idle: Iterable[VirtQueue]) -> tuple[Untaken, ...]:
    """Return the queues, of those that stood still, which hold requests while no kick is under way.

    The guest's index was read after the first snapshot; QEMU's is that of the second. That both were read from the
    right place shows in the ring's other index, which QEMU wrote itself.
    """
    queues = facts.virtqueues
    running = [state.value.running for state in (facts.run_state, facts.run_state_again) if isinstance(state, Known)]
    if not isinstance(queues, Known) or not all(running):
        return ()
    holding = []
    for queue in idle:
        events = queue.device_type.startswith("virtio-scsi") and queue.index == EVENTS
        ready = queue.notification and queue.host_notifier_enabled and queue.device not in queues.value.broken
        if ready and not events and _no_kick(queues.value, queue):
            ahead, ahead_again = (_ahead(queue, words) for words in (queues.value.words, queues.value.words_again))
            if 0 < ahead <= ahead_again:
                holding.append(Untaken(queue, ahead))
    return tuple(holding)


def _no_kick(queues: Queues, queue: VirtQueue) -> bool:
    """Tell whether the queue's eventfd was empty at both looks, with a thread or an io_uring that may sleep on it."""
    fd = queues.notifier(queue.host_notifier_fd)
    return fd is not None and (fd.count, fd.count_again) == (0, 0) and False not in {fd.polled, fd.polled_again}


def _ahead(queue: VirtQueue, words: Iterable[RingWords]) -> int:
    """Return how many requests the guest is ahead of QEMU, 0 where that cannot be told."""
    for ring in words:
        if (ring.device, ring.index) == (queue.device, queue.index) and ring.used_idx == queue.used_idx:
            ahead = (ring.avail_idx - queue.last_avail_idx) % INDICES
            return ahead if ahead <= queue.size else 0
    return 0
