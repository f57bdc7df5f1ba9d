"""Wedges built from documented fields: what a capture of each would hold. None of it was captured."""

from __future__ import annotations

from autopsy.bundle import records
from autopsy.bundle.sections import Section
from support.built import evidence as e

FROZEN_STACK = ("percpu_rwsem_wait", "__percpu_down_read", "vfs_write", "__x64_sys_pwrite64", "do_syscall_64")
PWRITE = "18 0x9 0x7f0000000000 0x1000 0x0 0x0 0x0 0x7f0000000000 0x7f0000000000"


def throttled(**limits: int) -> e.Case:
    case = e.Case()
    case.idle_threads()
    case.parked(e.THROTTLED_LEGACY, 15)
    case.monitor()
    case.disks(e.disk("drive-scsi0", "scsi0", bps=100, group="drive-scsi0", **limits))
    return case


def nbd(*, state: str = "T (stopped)", waits: bool = True) -> e.Case:
    case = e.Case()
    case.idle_threads()
    if waits:
        case.parked(e.NBD)
    case.monitor()
    case.disks(e.disk("d0", driver="raw", file="nbd+unix:///?socket=/run/nbd.sock"), e.disk("d1", after=900))
    case.command_line = (
        "-drive",
        "file=nbd+unix:///?socket=/run/nbd.sock,format=raw,if=none,id=d0",
        "-drive",
        "file=/b,id=d1,format=raw,if=none",
    )
    case.ends.append(
        records.SocketEnd(
            fd=11,
            inode=77,
            family="unix",
            state="ESTAB",
            remote="/run/nbd.sock",
            receive_queue=0,
            send_queue=0,
            peer_pids=(900,),
        )
    )
    case.peer_sections += [
        Section("peer/900/comm", b"qemu-nbd\n"),
        Section("peer/900/status", f"Name:\tqemu-nbd\nState:\t{state}\n".encode()),
    ]
    return case


def frozen_threads() -> e.Case:
    case = e.Case()
    case.idle_threads()
    for number in range(4):
        case.thread(e.PID + 100 + number, "worker", state="D", syscall=PWRITE, stack=FROZEN_STACK)
    case.descriptors[9] = "/mnt/vm/disk.raw"
    case.mountinfo += "31 30 7:0 / /mnt/vm rw - ext4 /dev/loop0 rw\n"
    case.parked(e.WORKERS, 4)
    case.monitor()
    case.disks(e.disk("d0", file="/mnt/vm/disk.raw"))
    return case


def frozen_native() -> e.Case:
    case = e.Case()
    case.idle_threads()
    case.tasks[0] = e.Task(
        e.PID,
        "qemu-system-x86",
        state="D",
        syscall="209 0x7f5500000000 0x1 0x7ffc00000000 0x0 0x0 0x0 0x7ffc00000000 0x7f0000000000",
        stack=("percpu_rwsem_wait", "__percpu_down_read", "aio_write", "io_submit_one", "__x64_sys_io_submit"),
        frames=("io_submit", "ioq_submit", "laio_co_submit"),
    )
    case.dead_monitor()
    case.descriptors[9] = "/mnt/vm/disk.raw"
    case.mountinfo += "31 30 7:0 / /mnt/vm rw - ext4 /dev/loop0 rw\n"
    case.command_line = ("-drive", "file=/mnt/vm/disk.raw,format=raw,if=none,id=d0,aio=native,cache.direct=on")
    return case


def stopped() -> e.Case:
    case = e.Case()
    case.idle_threads()
    for task in case.tasks:
        task.state, task.stack, task.wchan = "T", ("do_signal_stop", "get_signal"), "do_signal_stop"
        task.cpu_ns = task.switches = 0
    case.asked("(greeting)", None, outcome="silent")
    return case


def paused() -> e.Case:
    case = e.Case()
    case.idle_threads()
    case.monitor("paused")
    case.disks(e.disk("d0"))
    return case


def healthy_idle() -> e.Case:
    case = e.Case()
    case.idle_threads()
    case.monitor()
    case.disks(e.disk("d0"))
    return case


def healthy_busy() -> e.Case:
    case = e.Case()
    case.idle_threads(cpu_share=0.9)
    case.thread(
        e.PID + 100,
        "worker",
        state="D",
        syscall=PWRITE,
        stack=("io_schedule", "folio_wait_bit", "vfs_write"),
        switches=4000,
        cpu_ns=e.SECOND,
    )
    case.parked(e.WORKERS, 16, since="moved")
    case.parked(e.WORKERS, 4, since="stuck")  # new requests at the places of old ones
    case.monitor()
    case.disks(e.disk("d0", before=1000, after=90000))
    return case


def deadlock() -> e.Case:
    case = e.Case(version="10.0.2")
    case.idle_threads(vcpus=4, iothreads=4)
    mine = e.PID + 50
    lock = "__lll_lock_wait", "pthread_mutex_lock", "qemu_mutex_lock_impl", "throttle_group_co_io_limits_intercept"
    for task in case.tasks:
        if task.tid in range(mine, mine + 4):
            task.syscall = "202 0x55d000aa0010 0x80 0x2 0x0 0x0 0x0 0x7f0000000000 0x7f0000000000"
            task.stack, task.frames = e.IDLE_STACK, lock
    case.locks = records.LockGraph(
        mutexes=(
            records.Mutex(
                address=0x55D000AA0010,
                owner=mine,
                owner_comm="IO iothread0",
                kind="normal",
                count=0,
                waiters=tuple(range(mine, mine + 4)),
                place="heap",
            ),
        ),
        others=(),
        cycles=((mine,),),
        bql_address=0x55D000001000,
        bql_owner=0,
        bql_how_found="symbol",
    )
    case.futexes = [
        records.FutexWait(tid=tid, address=0x55D000AA0010, operation=0x80, value=2, lock=2, owner=mine, users=1, kind=0)
        for tid in range(mine, mine + 4)
    ]
    case.parked((*e.MUTEX, "throttle_group_co_io_limits_intercept", "", "", "coroutine_trampoline"), 1)
    case.parked(e.THROTTLED_LEGACY, 60)
    case.monitor()
    case.asked(
        "query-block", None, step="qmp.query-block", outcome="skipped", why="the guard: a mutex waits for itself"
    )
    case.asked("query-blockstats", [e.stats(e.disk("", "/machine/peripheral/vd0/virtio-backend"), 20000)])
    return case
