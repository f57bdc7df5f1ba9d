"""The wider families of wedges, built from documented fields. None of it was captured."""

from __future__ import annotations

from autopsy.bundle import records
from autopsy.bundle.heap import devices, loops
from autopsy.bundle.heap import records as heap_records
from autopsy.bundle.sections import Section
from support.built import evidence as e
from support.built.cases import PWRITE, healthy_idle, throttled


def in_kernel(*stack: str, syscall: str = PWRITE, state: str = "D") -> e.Case:
    """Four worker threads that sleep under these names of the host's kernel."""
    case = e.Case()
    case.idle_threads()
    for number in range(4):
        case.thread(e.PID + 100 + number, "worker", state=state, syscall=syscall, stack=(*stack, "do_syscall_64"))
    case.descriptors[9] = "/mnt/vm/disk.raw"
    case.parked(e.WORKERS, 4)
    case.monitor()
    case.disks(e.disk("d0", file="/mnt/vm/disk.raw"))
    return case


def parked_in(*functions: str, node: str = "raw", file: str = "disk.raw", number: int = 3) -> e.Case:
    """Requests that are parked under these frames; the disk's top node has that driver and file name."""
    case = e.Case()
    case.idle_threads()
    case.parked(functions, number)
    case.monitor()
    case.disks(e.disk("d0", driver=node, file=file))
    return case


def memory_wait(*stack: str) -> e.Case:
    """vCPUs that sleep in a page fault under these names."""
    case = e.Case()
    case.idle_threads(vcpus=4)
    for task in case.tasks:
        if task.comm.startswith("CPU "):
            task.state, task.stack, task.switches, task.cpu_ns = "D", (*stack, "handle_mm_fault"), 0, 0
    case.monitor()
    case.disks(e.disk("d0"))
    return case


def talking(*frames: str, peer_state: str = "T (stopped)") -> e.Case:
    """The main thread in a synchronous conversation with a helper program, holding the BQL."""
    case = e.Case()
    case.idle_threads()
    case.tasks[0] = e.Task(
        e.PID,
        "qemu-system-x86",
        syscall="47 0x15 0x7ffc00000000 0x0 0x0 0x0 0x0 0x7ffc00000000 0x7f0000000000",
        stack=("unix_stream_read_generic", "__sys_recvmsg"),
        frames=("recvmsg", "qio_channel_socket_readv", "tcp_chr_sync_read", "qemu_chr_fe_read_all", *frames),
    )
    case.ends.append(records.SocketEnd(fd=21, inode=5, family="unix", state="ESTAB", remote="/run/x", peer_pids=(901,)))
    case.peer_sections += [
        Section("peer/901/comm", b"helper\n"),
        Section("peer/901/status", f"Name:\thelper\nState:\t{peer_state}\n".encode()),
    ]
    case.dead_monitor()
    return case


def blocking_library(*, wakes: bool = False, goes_on: bool = False) -> e.Case:
    """The main thread under libssh, which polls its socket by itself; the freeze interrupts the poll."""
    case = e.Case()
    case.idle_threads()
    call = " 0x55d0ff000000 0x1 0xffffffff 0x0 0x0 0x0 0x7ffc00000000 0x7f0000000000"
    where = ("poll_schedule_timeout.constprop.0", "do_sys_poll")
    case.tasks[0] = e.Task(
        e.PID,
        "qemu-system-x86",
        syscall=f"7{call}",
        stack=(*where, "__x64_sys_poll", "do_syscall_64"),
        switches=900 * (wakes or goes_on),
        frames=("__GI___poll", "ssh_channel_read_timeout", "sftp_write", "ssh_co_writev"),
        later={"syscall": e.POLL, "stack": e.POLL_STACK}
        if goes_on
        else {"syscall": f"219{call}", "stack": (*where, "do_restart_poll", "do_syscall_64")},
    )
    case.polls.append(records.PollSet(tid=e.PID, call="poll", fds=(records.PollFd(fd=21, events=1, revents=0),)))
    case.ends.append(records.SocketEnd(fd=21, inode=5, family="tcp", state="ESTAB", remote="192.0.2.7:22"))
    case.command_line = (
        "-blockdev",
        '{"driver":"ssh","node-name":"s0","path":"/d","server":{"host":"192.0.2.7","port":"22"}}',
        "-device",
        "virtio-blk-pci,id=vd0,drive=s0",
    )
    case.dead_monitor()
    return case


def nested_poll(under: str, functions: tuple[str, ...] = (), number: int = 3) -> e.Case:
    """The main thread polls inside a call of the block layer while it holds the BQL."""
    case = e.Case(version="10.0.2")
    case.idle_threads(vcpus=2)
    case.main_loop = records.MainLoop(tid=e.PID, state="nested poll", under=under, why="aio_poll in its stack")
    if functions:
        case.parked(functions, number)
    case.dead_monitor()
    case.command_line = ("-drive", "file=disk.raw,format=raw,if=none,id=d0")
    return case


def ring_of_locks() -> e.Case:
    """The main thread has the BQL and wants an AioContext's lock; an iothread has that and wants the BQL."""
    case = e.Case(version="7.2.0")
    case.idle_threads(vcpus=2, iothreads=1)
    io = e.PID + 50
    for task in case.tasks:
        if task.tid in {e.PID, io}:
            task.syscall, task.stack, task.switches, task.cpu_ns = e.IDLE_WORKER, e.IDLE_STACK, 0, 0
    case.locks = records.LockGraph(
        mutexes=(
            records.Mutex(
                address=0x1000, owner=e.PID, owner_comm="q", kind="normal", count=0, waiters=(io,), is_bql=True
            ),
            records.Mutex(address=0x2000, owner=io, owner_comm="i", kind="recursive", count=1, waiters=(e.PID,)),
        ),
        others=(),
        cycles=((e.PID, io),),
        bql_address=0x1000,
        bql_owner=e.PID,
        bql_how_found="symbol",
    )
    case.main_loop = records.MainLoop(tid=e.PID, state="waits for a mutex", waits_on_tid=io)
    case.dead_monitor()
    return case


def own_lock(*frames: str) -> e.Case:
    """An iothread that waits for a mutex of its own, under these frames."""
    case = e.Case(version="10.0.2")
    case.idle_threads(iothreads=1)
    io = e.PID + 50
    for task in case.tasks:
        if task.tid == io:
            task.syscall, task.stack = "202 0x1000 0x80 0x2 0x0 0x0 0x0 0x7f0000000000 0x7f0000000000", e.IDLE_STACK
            task.frames = ("__lll_lock_wait", "pthread_mutex_lock", "qemu_mutex_lock_impl", *frames)
    mutex = records.Mutex(address=0x1000, owner=io, owner_comm="i", kind="normal", count=0, waiters=(io,), place="heap")
    case.locks = records.LockGraph(mutexes=(mutex,), others=(), cycles=((io,),))
    case.futexes = [records.FutexWait(tid=io, address=0x1000, operation=0x80, value=2, lock=2, owner=io, users=1)]
    case.monitor()
    case.disks(e.disk("d0"))
    return case


def aio_ring(*, head: int, tail: int) -> e.Case:
    """Requests that wait for Linux AIO, with a ring that stood so at both looks."""
    case = parked_in(*e.NATIVE)
    ring = records.AioRing(address=0x7F0000000000, context_id=1, entries=128, head=head, tail=tail, valid=True)
    case.rings = [records.Rings(aio=(ring,), uring=(), taken_ns=moment * e.SECOND) for moment in (10, 15)]
    return case


def uring_unsent() -> e.Case:
    """Requests that wait for io_uring, with submissions that the kernel has not seen at either look."""
    case = parked_in(*e.URING)
    ring = records.UringState(fd=12, raw={}, sq_head=5, sq_tail=8, cq_head=5, cq_tail=5)
    case.rings = [records.Rings(aio=(), uring=(ring,), taken_ns=moment * e.SECOND) for moment in (10, 15)]
    return case


def job_stalled() -> e.Case:
    """A mirror that stands at the same place in both snapshots, while the guest's disks are at rest."""
    case = healthy_idle()
    job = {"id": "mirror0", "type": "mirror", "status": "running", "current-progress": 100, "total-progress": 1000}
    case.asked("query-jobs", [job])
    case.asked("query-jobs", [job], step="second-exposure")
    return case


def lsi(*, reentrancy: int = 0, pending: int = 0) -> e.Case:
    """An LSI controller as the heap tells of it, with nothing in flight below."""
    case = healthy_idle()
    queue = (devices.LsiRequest(address=1, tag=1, pending=pending, dma_bytes=0, out=False),) if pending else ()
    controller = devices.Lsi(
        device="scsihw0",
        waiting="reselect" if pending else "nothing",
        current=None,
        queue=queue,
        registers={"istat0": 0},
        scripts_timer=None,
        reentrancy_level=reentrancy,
    )
    case.heap = case.heap_again = heap_records.HeapSnapshot(taken_ns=1, lsi=(controller,), backends=(backend(),))
    return case


def backend(**more: int) -> heap_records.BlockBackend:
    """A disk's BlockBackend at rest."""
    return heap_records.BlockBackend(
        address=0x100,
        name="d0",
        device="d0",
        device_type="scsi-hd",
        node=0x200,
        node_name="#d0",
        context=0x300,
        in_flight=more.get("in_flight", 0),
        quiesce_counter=more.get("quiesce_counter", 0),
        queued_requests=(),
        disable_request_queuing=False,
        io_status="ok",
    )


def virtqueue(*, notification: bool = True, host_fd: int = -1, guest_fd: int = -1) -> e.Case:
    """A virtio disk's queue in both snapshots, idle as far as QEMU knows."""
    case = healthy_idle()
    queue = devices.VirtQueue(
        device="vd0",
        device_type="virtio-blk-device",
        index=0,
        size=256,
        inuse=0,
        last_avail_idx=40,
        shadow_avail_idx=40,
        used_idx=40,
        signalled_used=40,
        signalled_used_valid=True,
        notification=notification,
        host_notifier_fd=host_fd,
        guest_notifier_fd=guest_fd,
        host_notifier_enabled=True,
    )
    case.heap = case.heap_again = heap_records.HeapSnapshot(taken_ns=1, virtqueues=(queue,), backends=(backend(),))
    for fd in (host_fd, guest_fd):
        if fd >= 0:
            case.descriptors[fd] = "anon_inode:[eventfd]"
            case.info[fd] = "pos:\t0\neventfd-count:                1\n"
    return case


def lost_timer() -> e.Case:
    """A throttle group with requests in its queue, the armed flag set, and no timer pending."""
    case = throttled()
    timer = loops.Timer(address=1, clock="realtime", callback="timer_cb")
    member = heap_records.ThrottleMember(
        address=1,
        owner="drive-scsi0",
        owner_address=0x100,
        context=0,
        queued=((), tuple(each.address for each in case.coroutines)),
        pending_requests=(0, 15),
        io_limits_disabled=0,
        restart_pending=0,
        timers=(timer, timer),
    )
    group = heap_records.HeapThrottleGroup(
        address=1,
        size=400,
        name="drive-scsi0",
        clock="realtime",
        lock=loops.HeapMutex(address=8, owner=0),
        buckets=(),
        operation_size=0,
        previous_leak_ns=0,
        tokens=("", ""),
        any_timer_armed=(False, True),
        members=(member,),
    )
    case.heap = heap_records.HeapSnapshot(taken_ns=1, throttle_groups=(group,))
    return case


def quiesced() -> e.Case:
    """Requests that are queued because their disk is drained, while nothing drains."""
    case = parked_in(*e.QUEUE, "blk_wait_while_drained", "blk_co_pwritev", "coroutine_trampoline")
    case.main_loop = records.MainLoop(tid=e.PID, state="idle", why="it sleeps in ppoll right under main_loop_wait")
    return case
