"""The names of functions by which a stack tells how its thread waits: glibc's and QEMU's, of every version."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from autopsy.bundle.syscalls import NAMES
from autopsy.bundle.syscalls import POLL_CALLS as NUMBERED_POLLS


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


# How a C library enters the kernel, around every call that may block: glibc's since 2.41 and on 32 bits, and musl's.
ENTRIES = _set(
    """
    __syscall_cancel __internal_syscall_cancel __syscall_cancel_arch __syscall_cancel_arch_end __libc_do_syscall
    __kernel_vsyscall _dl_sysinfo_int80 __syscall_cp __syscall_cp_c __syscall_cp_asm sccp
    """
)
# Linux's names, then those of macOS, of the BSDs, and of musl.
LOCKS = _set(
    """
    __lll_lock_wait lll_lock_wait __lll_lock_wait_private __lll_mutex_lock_wait __lll_robust_lock_wait
    lll_mutex_lock_optimized pthread_mutex_lock __pthread_mutex_lock ___pthread_mutex_lock __pthread_mutex_lock_full
    pthread_mutex_lock_full qemu_mutex_lock qemu_mutex_lock_impl qemu_rec_mutex_lock qemu_rec_mutex_lock_impl
    qemu_spin_lock qemu_lockable_lock qemu_lockable_auto_lock __pthread_rwlock_wrlock __pthread_rwlock_rdlock
    __psynch_mutexwait _pthread_mutex_firstfit_lock_wait _pthread_mutex_firstfit_lock_slow _pthread_mutex_lock_slow
    _pthread_mutex_droplock __thr_umutex_lock __thr_umutex_lock_spin mutex_lock_sleep
    __pthread_mutex_timedlock pthread_mutex_timedlock
    """
)
OLD_LOCK = "_L_lock_"
# Locks that are made of a condition: until QEMU 2.8 an AioContext's ("async: remove aio_context_acquire's RFifoLock"),
# and the one of record and replay.
TICKETS = _set("rfifolock_lock replay_mutex_lock")
BQL = _set(
    """
    qemu_mutex_lock_iothread qemu_mutex_lock_iothread_impl bql_lock bql_lock_impl bql_auto_lock
    qemu_mutex_iothread_lock
    """
)
ONLY_BQL = _set("os_host_main_loop_wait prepare_mmio_access kvm_cpu_exec")  # they take no other mutex
JOINS = _set(
    """
    pthread_join __pthread_join ___pthread_join __pthread_clockjoin_ex __pthread_timedjoin_ex __pthread_clockjoin
    pthread_timedjoin_np qemu_thread_join g_thread_join
    """
)
SEMAPHORES = _set(
    """
    sem_wait sem_timedwait __new_sem_wait do_sem_wait __new_sem_wait_slow do_futex_wait qemu_sem_wait
    qemu_sem_timedwait
    """
)
EVENTS = _set("qemu_event_wait qemu_futex_wait")
CONDITIONS = _set(
    """
    pthread_cond_wait __pthread_cond_wait ___pthread_cond_wait __pthread_cond_wait_common pthread_cond_timedwait
    __pthread_cond_timedwait ___pthread_cond_timedwait pthread_cond_clockwait qemu_cond_wait qemu_cond_wait_impl
    qemu_cond_timedwait qemu_cond_timedwait_ts qemu_cond_timedwait_impl qemu_cond_timedwait_iothread
    qemu_cond_wait_iothread qemu_cond_wait_bql g_cond_wait g_cond_wait_until
    __psynch_cvwait _pthread_cond_wait _pthread_cond_timedwait cond_wait_common cond_wait_kernel
    """
)
CONDITION_KINDS = MappingProxyType({"SEMAPHORE": SEMAPHORES, "EVENT": EVENTS, "CONDITION": CONDITIONS})
# Loops that wait for work so, beside those of IDLE_UNDER (qemu_process_cpu_events since QEMU 10.2), RCU's own thread,
# and what the graph knows an edge of by itself.
RESTING = _set(
    """
    qemu_thread_start start_thread qemu_process_cpu_events rr_wait_io_event kvm_dirty_ring_reaper_thread
    edu_fact_thread handle_apdu_thread event_thread migration_rate_limit colo_compare_thread worker_thread
    call_rcu_thread vnc_worker_thread_loop mttcg_cpu_thread_fn rr_cpu_thread_fn
    synchronize_rcu wait_for_readers pause_all_vcpus
    """
)
FUTEXES = _set(
    """
    syscall futex futex_wait futex_wait_simple futex_wait_cancelable __futex_abstimed_wait_common
    __futex_abstimed_wait_common64 __futex_abstimed_wait_cancelable __futex_abstimed_wait_cancelable64
    futex_abstimed_wait_cancelable futex_abstimed_wait futex_reltimed_wait_cancelable
    _umtx_op _umtx_op_err ___lwp_park60 _lwp_park __timedwait __timedwait_cp
    """
)
WAITING = LOCKS | TICKETS | BQL | JOINS | SEMAPHORES | EVENTS | CONDITIONS | FUTEXES | ENTRIES | _set("_L_lock_")
RUST_WAITS = ("std::sys::", "std::thread::park", "std::sync::", "parking_lot")
OTHER_WAITS = MappingProxyType({"LOCK": (OLD_LOCK,), "CONDITION": RUST_WAITS})  # by how their names begin

POLLS = _set("aio_poll bdrv_drain_poll_top_level")
OLD_POLLS = _set("bdrv_drain_recurse bdrv_drain_all_poll bdrv_drain_poll")
OWN_LOOPS = _set("iothread_run aio_poll_loop vu_blk_exp_loop worker_thread main_loop_wait qemu_main_loop run_block_job")
BEGINNINGS = _set(
    "qemu_thread_start start_thread clone clone3 __clone __clone3 thread_start _pthread_start main __libc_start_main"
)
POLLING = _set(
    """
    qemu_poll_ns g_poll fdmon_poll_wait fdmon_epoll_wait fdmon_io_uring_wait aio_bh_poll aio_bh_call run_poll_handlers
    run_poll_handlers_once try_poll_mode aio_dispatch aio_dispatch_handlers aio_poll aio_compute_timeout
    io_uring_wait_cqe
    __io_uring_submit_and_wait io_uring_submit_and_wait io_uring_submit_and_wait_timeout __sys_io_uring_enter
    _io_uring_get_cqe __sys_io_uring_enter2 syscall aio_epoll qemu_bh_poll clock_gettime get_clock
    """
)
LOOPS = _set(
    """
    main_loop_wait os_host_main_loop_wait g_main_loop_run g_main_context_iterate g_main_context_poll iothread_run
    qemu_poll_ns
    """
)
# They wait in a loop of their own for one thing.
FOR_ONE_THING = _set(
    """
    qio_channel_wait qio_channel_wait_cond qemu_rdma_wait_comp_channel tcp_chr_wait_connected
    qio_net_listener_wait_client nbd_client_connect vhost_user_read tcp_chr_accept_server_sync
    """
)
ENDS = _set("abort raise __pthread_kill_implementation __assert_fail __assert_fail_base")
POLL_CALLS = NUMBERED_POLLS | {"pselect"}
GUEST_RUNS = _set("kvm_vcpu_ioctl kvm_cpu_exec")
IDLE_UNDER = MappingProxyType(
    {
        "EVENT": _set("call_rcu_thread dirtyrate_thread"),
        "SEMAPHORE": _set("worker_thread multifd_send_thread multifd_recv_thread do_data_decompress do_data_compress"),
        "CONDITION": _set(
            """
            qemu_kvm_wait_io_event qemu_wait_io_event qemu_kvm_cpu_thread_fn kvm_vcpu_thread_fn worker_thread
            qemu_tcg_wait_io_event qemu_dummy_cpu_thread_fn do_data_compress do_data_decompress vnc_worker_thread_loop
            vnc_worker_thread
            """
        ),
    }
)

# Who ends the wait for a condition in each, by how the names of those threads begin.
SIGNALLED_BY: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "vnc_jobs_join": ("vnc_worker",),
        "multifd_send_pages": ("multifdsend", "mig/src/send"),
        "multifd_send": ("multifdsend", "mig/src/send"),
        "multifd_send_sync_main": ("multifdsend", "mig/src/send"),
        "multifd_send_zero_page_detect": ("multifdsend", "mig/src/send"),
        "multifd_recv_sync_main": ("multifdrecv", "mig/dst/recv"),
        "ram_flush_compressed_data": ("compress",),
        "wait_for_decompress_done": ("decompress",),
        "decompress_data_with_multi_threads": ("decompress",),
        "colo_notify_compares_event": ("colo-compare",),
    }
)

# A vCPU in one of these emulates a device; all but a few hold the BQL.
DISPATCH = _set(
    """
    memory_region_dispatch_write memory_region_dispatch_read memory_region_write_accessor memory_region_read_accessor
    access_with_adjusted_size memory_region_write_with_attrs_accessor kvm_arch_handle_exit
    io_mem_write io_mem_read cpu_outb cpu_outw cpu_outl cpu_inb cpu_inw cpu_inl ioport_write ioport_read
    """
)
UNDER_BQL = _set(
    """
    migration_completion ram_save_setup qemu_savevm_state_setup migration_iteration_finish vm_stop_force_state
    qemu_savevm_state_complete_precopy migration_maybe_pause bg_migration_completion qemu_savevm_state_cleanup
    migration_try_vm_stop_and_save_concurrent ram_init_all ram_init_bitmaps
    """
)
READS_RCU = _set(
    """
    address_space_rw address_space_write address_space_read_full address_space_read flatview_write flatview_read
    address_space_map rcu_read_auto_lock
    """
)

_ALIASES = MappingProxyType(
    {
        "pread": "pread64",
        "pwrite": "pwrite64",
        "open": "openat",
        "usleep": "nanosleep",
        "g_usleep": "nanosleep",
        "select": "select",
        "accept": "accept4",
        "accept4": "accept4",
        "flock": "flock",
        "waitpid": "wait4",
        "sigwait": "rt_sigtimedwait",
        "sigwaitinfo": "rt_sigtimedwait",
        "sigsuspend": "rt_sigsuspend",
        "pause": "pause",
        "semop": "semop",
        "msgrcv": "msgrcv",
        "pselect": "pselect",
        "io_submit": "io_submit",
        "io_getevents_0_4": "io_getevents",
    }
)
_CALLS = frozenset(NAMES.values()) - {"restart_syscall", "futex"}


def system_call(function: str) -> str:
    """Return the system call that a function of the C library is, empty where it is none."""
    if function in _CALLS:
        return function
    bare = function.removeprefix("__GI_").removeprefix("__libc_").lstrip("_")
    if bare in _CALLS:
        return bare
    bare = bare.removesuffix("_nocancel").removesuffix("64").removesuffix("_2")
    return bare if bare in _CALLS else _ALIASES.get(bare, "")
