"""Finds virtqueue notifications that nobody has seen."""

from __future__ import annotations

from autopsy.bundle.heap import devices
from autopsy.diagnose.once import once
from autopsy.diagnose.queries.threads import descriptor
from autopsy.facts.cite import Unknown
from autopsy.facts.model.facts import Descriptor, Facts


@once
def idle_queues(facts: Facts) -> tuple[devices.VirtQueue, ...]:
    """Return the queues of disks that stood still in both snapshots, idle as far as QEMU knows."""
    if isinstance(facts.virtqueues, Unknown) or isinstance(facts.virtqueues.value.second, Unknown):
        return ()
    later = {(queue.device, queue.index): queue for queue in facts.virtqueues.value.second.value}
    return tuple(
        queue
        for queue in facts.virtqueues.value.first
        if queue.inuse == 0
        and (again := later.get((queue.device, queue.index)))
        and again.last_avail_idx == queue.last_avail_idx
        and again.notification == queue.notification
    )


def eventfd_of(facts: Facts, fd: int) -> Descriptor | None:
    """Return the eventfd that a queue's notifier is, None where it is not known, or was never made."""
    notifier = descriptor(facts, fd) if _set_up(fd) else None
    return notifier if notifier and notifier.kind == "eventfd" else None


def _set_up(fd: int) -> bool:
    """Tell whether a notifier was ever made: until then its memory is zeroed, and 0 is QEMU's standard input."""
    return fd > 0


@once
def unseen_notifiers(facts: Facts) -> tuple[int, ...]:
    """Return the notifiers of idle disk queues that the descriptor table does not show."""
    notifiers = [fd for queue in idle_queues(facts) for fd in (queue.host_notifier_fd, queue.guest_notifier_fd)]
    wanted = {fd for fd in notifiers if _set_up(fd)}
    counted = {fd for fd in wanted if (eventfd := eventfd_of(facts, fd)) is not None and eventfd.counter is not None}
    return tuple(sorted(wanted - counted))
