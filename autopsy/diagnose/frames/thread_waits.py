"""Threads that wait for one another: joins, locks taken twice or in the wrong order, RCU, migration, vCPUs."""

from __future__ import annotations

from autopsy.diagnose.diagnosis import Where
from autopsy.diagnose.frames.block_waits import called, match, nothing
from autopsy.diagnose.frames.stacks import NamedStack, WaitKind, stacks
from autopsy.diagnose.function_names import READS_RCU, SIGNALLED_BY, WAITING
from autopsy.diagnose.queries.wording import sentence
from autopsy.diagnose.signature import Judgement, Match, Signature
from autopsy.facts.model.facts import Facts, Role

MIGRATION = (
    "migration_",
    "migrate_",
    "multifd_",
    "postcopy_",
    "colo_",
    "process_incoming_migration",
    "source_return_path",
    "await_return_path",
    "close_return_path",
    "qemu_loadvm",
    "qemu_savevm",
    "loadvm_",
    "ram_save",
    "ram_load",
    "rdma_",
    "qemu_rdma",
    "vmstate_load",
    "vmstate_save",
    "bg_migration",
    "save_snapshot",
    "load_snapshot",
    "mig_",
)
USERS = {"replay_mutex_lock": ("replay_", "rr_", "icount_")}  # functions that are called with the lock held
STARTED = frozenset({"qemu_thread_start", "start_thread", "clone", "clone3", "__clone3", "thread_start"})
RCU = ("drain_call_rcu", "synchronize_rcu", "wait_for_readers")
# Who is in one of these holds the lock that the other takes.
HELD: tuple[tuple[tuple[str, ...], tuple[str, ...], str, Where], ...] = (
    (("monitor_cleanup", "monitor_data_destroy"), ("monitor_qapi_event_",), "the monitor's lock", "control"),
    (("throttle_group_", "timer_cb"), ("throttle_group_", "schedule_next"), "a throttle group's lock", "throttle"),
    (("vnc_disconnect_finish",), ("vnc_lock_output",), "a VNC client's output lock", "control"),
    (("virtio_scsi_", "scsi_device_"), ("scsi_device_", "scsi_req_"), "a SCSI device's lock", "device"),
)
# Block drivers with a lock of their own around a library that calls them back: whoever comes again finds it held.
REENTERED = ("curl_", "iscsi_", "nfs_", "qemu_gluster_", "nvme_", "blkio_")
# In these a thread of a migration rests, or goes on by itself.
STEPS = frozenset(
    {"migration_thread", "postcopy_ram_fault_thread", "multifd_send_thread", "multifd_recv_thread"}
    | {"source_return_path_thread", "postcopy_ram_listen_thread", "postcopy_preempt_thread"}
    | {"migration_rate_limit", "migration_iteration_run", "migration_object_init", "bg_migration_thread"}
)
PAUSES = (
    "pause_all_vcpus",
    "run_on_cpu",
    "do_run_on_cpu",
    "async_safe_run_on_cpu",
    "start_exclusive",
    "cpu_exec_start",
)
RECEIVES = ("qemu_fill_buffer", "qio_channel_", "qemu_rdma_", "gnutls_", "recvmsg", "readv", "read")


def _migrates(*waiting: NamedStack) -> bool:
    return any(stack.thread.role is Role.MIGRATION or stack.begins(*MIGRATION) for stack in waiting)


def _where(*waiting: NamedStack) -> Where:
    return "migration" if _migrates(*waiting) else "control"


def _twice(facts: Facts) -> Judgement:
    """A thread takes a lock that a function further out on its own stack holds."""
    known_stacks = stacks(facts)
    for stack in (waiter for waiter in known_stacks if waiter.wait is WaitKind.LOCK and not waiter.wants_context):
        taker = stack.under
        if stack.has("<signal handler called>") and taker:
            place = stack.names.index("<signal handler called>")
            outside = {name for name in stack.names[place:] if name}
            if taker in outside or taker.startswith(("malloc", "free", "_int_", "calloc", "realloc")):
                return _own(stack, f"{taker} inside of a signal handler that interrupted it")
        for holders, takers, lock, where in HELD:
            holder = next((name for name in stack.outer[1:] if name.startswith(holders)), "")
            if taker.startswith(takers) and holder:
                return _own(stack, f"{lock} in {taker}, under {holder}", where)
        if again := _reentered(stack):
            return _own(stack, f"the driver's own in {taker}, called back under {again}", "block")
        if taker and taker in stack.outer[1:] and not stack.wants_bql:
            return _own(stack, f"a lock in {taker}, which lies a second time further out on its stack")
    return nothing("no stack takes a lock twice", known_stacks)


def _reentered(stack: NamedStack) -> str:
    """Return the driver's function further out on a stack that takes its lock, with others between; empty for none."""
    driver = next((start for start in REENTERED if stack.under.startswith(start)), "")
    names = [name for name in stack.outer if name]
    away = next((at for at, name in enumerate(names) if not name.startswith(driver)), len(names))
    return next((name for name in names[away:] if name.startswith(driver)), "") if driver else ""


def _own(stack: NamedStack, words: str, where: Where = "control") -> Match:
    return match(f"{sentence(called(stack))} waits for a lock that it holds itself: {words}", stack, where=where)


def may_be_call_rcu(stack: NamedStack) -> bool:
    """Tell whether nothing says that it is another thread than call_rcu, whose work this is: it may have no name."""
    named = {name for name in stack.names if name} - WAITING - STARTED
    return named - {"wait_for_readers"} == {"synchronize_rcu"}


def _rcu(facts: Facts) -> Judgement:
    """A thread waits for RCU's readers, and is one, or waits inside of a loop that one of them needs."""
    known_stacks = stacks(facts)
    for stack in known_stacks:
        rcu = stack.has(*RCU)
        if (
            not rcu
            or stack.wait not in {WaitKind.EVENT, WaitKind.CONDITION, WaitKind.LOCK}
            or stack.thread.role is Role.CALL_RCU
            or may_be_call_rcu(stack)
        ):
            continue
        reader = next((name for name in stack.names if name in READS_RCU), "")
        if reader:
            return match(
                f"{sentence(called(stack))} waits in {rcu} for RCU's readers, and is one of them (in {reader})", stack
            )
        if any(other.wait is WaitKind.CALL and _in_migration(other) for other in known_stacks):
            continue  # it walks guest memory as a reader, and its own wait is the cause
        return match(
            f"{sentence(called(stack))} waits in {rcu} for RCU's readers, and holds up all that needs it", stack
        )
    return nothing("no thread waits for RCU", known_stacks)


def _join(facts: Facts) -> Judgement:
    """A thread waits for another one's end, which needs what the first holds, or was never told to end."""
    known_stacks = stacks(facts)
    for stack in (waiter for waiter in known_stacks if waiter.call in {"wait4", "waitid"} and waiter.holds_bql):
        place = next((name for name in stack.outer[1:] if name), stack.call)
        return match(f"{sentence(called(stack))} waits in {place} for the end of a program that QEMU started", stack)
    for stack in (waiter for waiter in known_stacks if waiter.wait is WaitKind.JOIN):
        joined = stack.begins("")
        others = [
            other
            for other in known_stacks
            if other is not stack and other.wants_bql and other.thread.role is not Role.VCPU
        ]
        if others and stack.holds_bql:
            return match(
                f"{sentence(called(stack))} waits in {joined} for the end of a thread that waits for the BQL: "
                f"{called(others[0])}",
                stack,
                others[0],
                where=_where(stack, others[0]),
            )
        return match(
            f"{sentence(called(stack))} waits in {joined} for the end of a thread that does not end",
            stack,
            where=_where(stack),
        )
    return nothing("no thread waits for another one's end", known_stacks)


def _migration(facts: Facts) -> Judgement:
    """A thread of the migration waits for another part of it, or for the other side."""
    known_stacks = stacks(facts)
    waits = {
        WaitKind.SEMAPHORE,
        WaitKind.EVENT,
        WaitKind.CONDITION,
        WaitKind.POLL,
        WaitKind.CALL,
        WaitKind.RUNS,
        WaitKind.LOCK,
    }
    ranked = sorted(
        (stack for stack in known_stacks if stack.wait in waits and not stack.wants_bql and _in_migration(stack)),
        key=lambda stack: (not stack.is_main, not stack.holds_bql, stack.thread.role is not Role.MIGRATION),
    )
    main = next((stack for stack in known_stacks if stack.is_main), None)
    elsewhere = main is not None and main.wait not in {WaitKind.RESTS, WaitKind.NAMELESS} and not main.wants_bql
    if elsewhere and main is not None and not _in_migration(main):  # what goes on beside it is no wedge
        ranked = [stack for stack in ranked if stack.holds_bql]
    for stack in ranked:
        place = stack.begins(*MIGRATION)
        held = " and holds the BQL" if stack.holds_bql else ""
        how = "is" if stack.wait in {WaitKind.RUNS, WaitKind.CALL} else "waits"
        side = (
            " for the other side"
            if stack.begins(*RECEIVES) and stack.wait in {WaitKind.CALL, WaitKind.POLL, WaitKind.RUNS}
            else ""
        )
        return match(f"{sentence(called(stack))} {how} in {place}{side}{held}", stack)
    return nothing("no thread waits in a migration", known_stacks)


def _in_migration(stack: NamedStack) -> bool:
    """Tell whether a thread is inside a migration's work: a migration thread between its steps rests."""
    place = stack.begins(*MIGRATION)
    return bool(place) and place not in STEPS


def _order(facts: Facts) -> Judgement:
    """One waits with the BQL held, for a lock or for what another one is to do, and that one waits for the BQL."""
    known_stacks = stacks(facts)
    waits = {WaitKind.LOCK, WaitKind.CONDITION, WaitKind.SEMAPHORE, WaitKind.EVENT}
    holders = [
        holder
        for holder in known_stacks
        if holder.holds_bql
        and not holder.has(*PAUSES)  # it lets go of the BQL meanwhile
        and (holder.wait in waits or (holder.wait is WaitKind.CALL and holder.begins("dispatcher_")))
    ]
    wanting = [
        waiter
        for waiter in known_stacks
        if waiter.wants_bql and waiter.thread.role in {Role.IOTHREAD, Role.MIGRATION, Role.MONITOR, Role.OTHER}
    ]
    pairs = [(holder, other) for holder in holders for other in wanting if other is not holder]
    pairs += [
        (holder, vcpu)
        for holder in holders
        for vcpu in known_stacks
        if holder.wait is WaitKind.LOCK and vcpu.wants_bql and vcpu.thread.role is Role.VCPU and _share(holder, vcpu)
    ]
    # What is polled for lies in an iothread, which ends nothing before it has the BQL.
    pairs += [
        (holder, other)
        for holder in known_stacks
        for other in wanting
        if holder.wait is WaitKind.POLL and holder.holds_bql and other.thread.role is Role.IOTHREAD
    ]
    for holder, other in pairs[:1]:
        how = f"polls in {holder.polls_for[0]}" if holder.wait is WaitKind.POLL else f"waits in {holder.under}"
        return match(
            f"{sentence(called(holder))} holds the BQL and {how}, and {called(other)} waits for the BQL",
            holder,
            other,
            where=_where(holder, other),
        )
    return nothing("no thread that holds the BQL waits for a lock", known_stacks)


def _share(holder: NamedStack, other: NamedStack) -> bool:
    """Tell whether one is inside of what the other wants the lock of: any vCPU may want the BQL, and be free of it."""
    return any(holder.has(lock) and other.begins(*users) for lock, users in USERS.items())


def _workers(facts: Facts) -> Judgement:
    """A thread that others need waits for a condition, and who signals it does not rest."""
    known_stacks = stacks(facts)
    for stack in known_stacks:
        starts = SIGNALLED_BY.get(stack.under, ())
        if not starts or stack.wait not in {WaitKind.CONDITION, WaitKind.SEMAPHORE, WaitKind.EVENT}:
            continue
        worker = next(
            (
                other
                for other in known_stacks
                if other is not stack and other.thread.comm.startswith(starts) and other.wait is not WaitKind.RESTS
            ),
            None,
        )
        if worker is not None and (stack.is_main or stack.holds_bql):
            place = next((name for name in worker.outer if name), "")
            return match(
                f"{sentence(called(stack))} waits in {stack.under} for {called(worker)}, which {worker.wait.value}"
                f"{f', in {place}' if place else ''}",
                stack,
                worker,
                where=_where(stack, worker),
            )
    return nothing("no thread waits for another one's work", known_stacks)


def _pauses(facts: Facts) -> Judgement:
    known_stacks = stacks(facts)
    for stack in known_stacks:
        place = stack.has(*PAUSES)
        if place and stack.wait in {WaitKind.CONDITION, WaitKind.SEMAPHORE}:
            return match(f"{sentence(called(stack))} waits in {place} for vCPUs that do not answer", stack)
    return nothing("no thread waits for a vCPU", known_stacks)


SIGNATURES = (
    Signature("lock-taken-twice", "control", "a thread takes a lock that it holds", _twice),
    Signature("rcu-readers-wait", "control", "RCU's readers are waited for by one of them", _rcu),
    Signature("thread-join-waits", "control", "a thread waits for another one's end", _join),
    Signature("lock-order-with-bql", "control", "a lock and the BQL are taken in both orders", _order),
    Signature("worker-thread-waits", "control", "another thread's work is waited for", _workers),
    Signature("migration-thread-waits", "migration", "a thread of a migration waits", _migration),
    Signature("vcpu-does-not-pause", "control", "a vCPU is waited for and does not answer", _pauses),
)
