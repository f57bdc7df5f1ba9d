"""Walk the throttle groups: limits, levels, whose turn it is, who waits, which timer is to wake them."""

from __future__ import annotations

import drgn

from autopsy.bundle.heap.records import Bucket, HeapThrottleGroup, ThrottleMember
from autopsy.examine.heap.block import backend_label, block_backends, block_states, driver
from autopsy.examine.heap.shape import CLOCKS, Walk, co_lock, lock, member, number, pointer, string

BUCKETS = ("bps-total", "bps-read", "bps-write", "iops-total", "iops-read", "iops-write")  # BucketType's order


def throttle_groups(walk: Walk) -> tuple[HeapThrottleGroup, ...]:
    """Return every ThrottleGroup: those of `throttle-group` objects, and those that limits of a disk imply."""
    head = walk.variable("throttle_groups")
    if head is None:
        walk.note("throttle groups: this QEMU has no throttle_groups")
        return ()
    owners = _owners(walk)
    groups: list[HeapThrottleGroup] = []
    for group in walk.chain("throttle groups", head, "list"):
        with walk.reading(f"throttle group at {pointer(group):#x}"):
            groups.append(_group(walk, group, owners))
    return tuple(groups)


def _owners(walk: Walk) -> dict[int, tuple[str, int]]:
    """Return who each ThrottleGroupMember belongs to: a back end has one inside, a throttle filter node is one."""
    owners: dict[int, tuple[str, int]] = {}
    for backend in block_backends(walk):
        with walk.reading(f"throttling of the back end at {pointer(backend):#x}"):
            inside = backend.public.throttle_group_member.address_
            if inside is not None:
                owners[inside] = (backend_label(walk, backend), pointer(backend))
    for state in block_states(walk):
        with walk.reading(f"throttling of the node at {pointer(state):#x}"):
            if driver(walk, state) == "throttle":
                owners[pointer(state.opaque)] = (string(state.node_name), pointer(state))
    return owners


def _group(walk: Walk, group: drgn.Object, owners: dict[int, tuple[str, int]]) -> HeapThrottleGroup:
    name = string(group.name)
    walk.knows(f"throttle group {name}", group, "lock")
    members: list[ThrottleMember] = []
    for element in walk.chain(f"members of throttle group {name}", group.head, "round_robin"):
        with walk.reading(f"throttle group member at {pointer(element):#x}"):
            members.append(_member(walk, element, owners))
    clock = int(group.clock_type)
    tokens = [owners.get(pointer(token), ("", 0))[0] for token in group.tokens]
    return HeapThrottleGroup(
        address=pointer(group),
        size=drgn.sizeof(group[0]),
        name=name,
        clock=CLOCKS[clock] if clock < len(CLOCKS) else str(clock),
        lock=lock(group.lock),
        buckets=tuple(
            Bucket(
                name=bucket_name,
                avg=float(bucket.avg),
                max=float(bucket.max),
                level=float(bucket.level),
                burst_level=float(bucket.burst_level),
                burst_length=int(bucket.burst_length),
            )
            for bucket_name, bucket in zip(BUCKETS, group.ts.cfg.buckets, strict=False)
            if bucket.avg or bucket.max or bucket.level
        ),
        operation_size=int(group.ts.cfg.op_size),
        previous_leak_ns=int(group.ts.previous_leak),
        tokens=(tokens[0], tokens[1]),
        any_timer_armed=(bool(group.any_timer_armed[0]), bool(group.any_timer_armed[1])),
        members=tuple(members),
    )


def _member(walk: Walk, element: drgn.Object, owners: dict[int, tuple[str, int]]) -> ThrottleMember:
    owner, owner_address = owners.get(pointer(element), ("", 0))
    context = pointer(element.aio_context)
    waiting = [walk.coroutines(f"requests throttled for {owner}", queue) for queue in element.throttled_reqs]
    timers = [walk.timer(timer, context) for timer in element.throttle_timers.timers]
    return ThrottleMember(
        address=pointer(element),
        owner=owner,
        owner_address=owner_address,
        context=context,
        queued=(waiting[0], waiting[1]),
        pending_requests=(int(element.pending_reqs[0]), int(element.pending_reqs[1])),
        io_limits_disabled=int(element.io_limits_disabled),
        restart_pending=number(element, "restart_pending") or 0,
        timers=(timers[0], timers[1]),
        # Gone since "block/throttle-groups: fix deadlock with iolimits and muliple iothreads" (in v11.0, 10.0.9).
        queue_lock=co_lock(member(element, "throttled_reqs_lock")),
    )
