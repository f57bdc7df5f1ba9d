"""What a sleeping thread waits for inside the host's kernel, by the names on its kernel stack."""

from __future__ import annotations

import re
from functools import lru_cache

from autopsy.bundle.syscalls import REQUEST_CALLS
from autopsy.dataclass import dataclass
from autopsy.diagnose.diagnosis import Where
from autopsy.facts.model.facts import ThreadSnapshot

IDLE = re.compile(
    r"futex_|do_sys_poll|do_poll|poll_schedule|ep_poll|do_epoll|kvm_vcpu_(?:block|halt)|io_cqring_wait|hrtimer_nanosleep"
    r"|do_nanosleep|do_sigtimedwait|kvm_arch_vcpu_ioctl_run|vcpu_(?:run|enter_guest)|kvm_vcpu_ioctl|pipe_read|eventfd_read"
)


POSTCOPY = "postcopy-page-wait"
SNAPSHOT = "snapshot-page-wait"


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of wait in the kernel. `names` must match a name on the stack, `also` another where it is given.

    One that `passes` is met on healthy hosts too: a single look at it proves nothing.
    """

    id: str
    where: Where
    title: str
    words: str
    names: re.Pattern[str]
    also: re.Pattern[str] | None = None
    only_requests: bool = True
    passes: bool = True


# The first that fits is it: the particular before the general, the block layer last of all.
FAMILIES = (
    Family(
        "host-fs-frozen",
        "host",
        "the file system below is frozen",
        "a frozen file system (the kernel waits for a thaw)",
        re.compile(
            r"percpu_rwsem_wait|__percpu_down_read|percpu_down_read|s?b_start_(?:write|pagefault|intwrite)|__sb_start_write"
        ),
        re.compile(
            r"write|aio|io_submit|fallocate|truncate|fsync|pagefault|page_mkwrite|io_wq|io_issue|start_intwrite|journal_start"
        ),
        passes=False,
    ),
    Family(
        "fuse-daemon-silent",
        "peer",
        "a FUSE daemon does not answer",
        "a FUSE daemon's answer",
        re.compile(r"request_wait_answer|fuse_simple_request|fuse_request_send|fuse_(?!dev_)\w+|virtio_fs_\w+"),
    ),
    Family(
        "host-nfs-wait",
        "peer",
        "an NFS server does not answer",
        "an NFS server's answer",
        re.compile(r"rpc_wait_bit_killable|nfs_wait_bit_killable|nfs4?_\w+|rpc_\w+|xprt_\w+"),
    ),
    Family(
        "host-ceph-wait",
        "peer",
        "a Ceph cluster does not answer the kernel's client",
        "a Ceph cluster's answer",
        re.compile(r"ceph_\w+|rbd_\w+|libceph\w*"),
    ),
    Family(
        "host-smb-wait",
        "peer",
        "an SMB server does not answer",
        "an SMB server's answer",
        re.compile(r"cifs_\w+|smb2_\w+|SMB2_\w+|wait_for_response|compound_send_recv"),
    ),
    Family(
        "host-zfs-wait",
        "host",
        "ZFS does not complete",
        "ZFS (a transaction group, the intent log or a zvol)",
        re.compile(r"cv_wait_common|__cv_\w+|txg_wait_\w+|zil_commit\w*|dmu_tx_\w+|zvol_\w+|zfs_\w+|zio_wait"),
    ),
    Family(
        "memory-reclaim",
        "host",
        "the host is short of memory",
        "memory (reclaim, compaction, a group's limit or swap)",
        re.compile(
            r"try_to_free_\w*pages|shrink_(?:node|lruvec|slab|folio_list|zones)|throttle_direct_reclaim|out_of_memory"
            r"|mem_cgroup_(?:out_of_memory|handle_over_high|oom_synchronize)|compact_zone|__alloc_pages_direct_compact"
            r"|do_swap_page|swap_read\w+|migration_entry_wait\w*|reclaim_throttle|balance_pgdat"
        ),
        only_requests=False,
    ),
    Family(
        "mmap-lock-held",
        "host",
        "threads wait for the process's memory map lock",
        "the process's memory map lock",
        re.compile(
            r"rwsem_down_(?:read|write)_slowpath|down_(?:read|write)_killable|mmap_read_lock\w*|lock_mm_and_find_vma"
        ),
        re.compile(r"fault|mmap|munmap|mprotect|madvise|brk|get_user_pages|gup|pin_user|faultin|vm_"),
        only_requests=False,
    ),
    Family(
        POSTCOPY,
        "migration",
        "threads wait for guest pages that the migration's source has not sent",
        "a guest page that the migration's source has not sent (userfaultfd)",
        re.compile(r"handle_userfault"),
        only_requests=False,
    ),
    # Its kernel stack is that of postcopy: what write-protects the pages tells the two apart, and is looked for first.
    Family(
        SNAPSHOT,
        "migration",
        "threads wait for guest pages that a background snapshot has not saved",
        "a guest page that a background snapshot has not saved yet (userfaultfd)",
        re.compile(r"handle_userfault"),
        only_requests=False,
    ),
    Family(
        "host-writeback-throttled",
        "host",
        "writers are slowed because too many pages are dirty",
        "writeback: too many dirty pages (balance_dirty_pages)",
        re.compile(r"balance_dirty_pages\w*|io_schedule_timeout"),
        re.compile(r"balance_dirty_pages\w*"),
    ),
    Family(
        "host-dm-suspended",
        "host",
        "a device-mapper device is suspended",
        "a suspended block device (dmsetup)",
        re.compile(
            r"dm_wait_\w+|dm_suspend\w*|dm_submit_bio|dm_queue\w*|__bio_queue_enter|blk_queue_enter|blk_mq_freeze\w*"
        ),
    ),
    Family(
        "host-block-wait",
        "host",
        "the host's block layer does not complete",
        "the host's block layer",
        re.compile(
            r"io_schedule|blk_\w+|blkdev_\w+|submit_bio\w*|bio_\w+|wbt_wait|rq_qos_wait|md_\w+|raid\d\w*|scsi_\w+|nvme_\w+"
            r"|folio_wait_\w+|wait_on_page_\w+|iomap_\w+|ext4_\w+|xfs_\w+|xlog_\w+|btrfs_\w+|f2fs_\w+|jbd2_\w+|dm_\w+"
            r"|filemap_\w+|file_write_and_wait_range|generic_file_\w+|__wait_on_buffer|inode_dio_wait\w*|rwsem_down_\w+"
        ),
    ),
)

OF_ANY_STORAGE = frozenset({"host-block-wait", "host-writeback-throttled"})
# Of these file systems the beginning of the name tells who answers: `fuse.sshfs`, `nfs4`.
SERVED = {
    "fuse": "fuse-daemon-silent",
    "nfs": "host-nfs-wait",
    "ceph": "host-ceph-wait",
    "cifs": "host-smb-wait",
    "smb": "host-smb-wait",
    "zfs": "host-zfs-wait",
}


def family_called(identity: str) -> Family | None:
    """Return the family of that name."""
    return next((known for known in FAMILIES if known.id == identity), None)


def family_of_mount(fstype: str) -> Family | None:
    """Return what whoever waits for a file's pages there waits for, None where the host's block layer has them."""
    wanted = next((kind for name, kind in SERVED.items() if fstype.startswith(name)), "")
    return family_called(wanted)


# What a thread waits for that no storage is behind, by where it sleeps.
SLEEPS = (
    ("wait_for_partner", "for somebody to open the other end of a FIFO"),
    (r"(?:anon_)?pipe_write", "for a pipe's reader"),
    (r"(?:anon_)?pipe_read", "for a pipe's writer"),
    ("__break_lease", "for the holder of a lease on the file to give it back, or for the kernel to take it"),
    (r"autofs_\w+", "for the automounter (autofs) to mount what it opens"),
    (r"(?:locks|posix|flock)_lock_inode_wait|fcntl_setlk|do_lock_file_wait", "for a lock on the file"),
    (r"do_wait\w*|kernel_wait\w*", "for a child process to end"),
    (r"fanotify_\w+", "for a program that watches files (fanotify), such as a virus scanner, to let it"),
    ("seccomp_do_user_notification", "for the supervisor of its system calls (seccomp) to let it"),
    (r"(?:n_tty|tty)_\w+", "for a terminal"),
    ("unix_wait_for_peer|sock_alloc_send_pskb|sk_stream_wait_memory", "for the other end of a socket to read"),
    (r"__skb_wait_for_more_packets|unix_stream_\w+|sk_wait_data", "for the other end of a socket to write"),
    ("inet_wait_for_connect", "for the other end to accept a connection"),
    (r"futex_\w+", "to be woken by another thread"),
)


def waits_for(look: ThreadSnapshot) -> str:
    """Say what a sleeping thread waits for, empty where its kernel stack and its wchan do not tell."""
    if known := family(look):
        return f"for {known.words}"
    for name in (*look.kernel_stack[:3], look.wchan):
        for pattern, words in SLEEPS:
            if re.fullmatch(pattern, name.partition(".")[0]):
                return words
    return ""


def family(look: ThreadSnapshot) -> Family | None:
    """Return what a thread waits for, None where it runs, idles, or its stack tells nothing."""
    return family_of(look.state, look.syscall.name, look.kernel_stack, look.wchan)


@lru_cache(maxsize=4096)  # each signature asks of each thread, and most threads sleep at a few places
def family_of(state: str, call: str, kernel_stack: tuple[str, ...], wchan: str) -> Family | None:
    """Return what a thread waits for in this state, system call and place of the kernel's."""
    names = kernel_stack or ((wchan,) if wchan else ())
    if not names or state in {"R", "T", "t", "Z", "X"} or IDLE.match(names[0]):
        return None
    requests = call in REQUEST_CALLS | {"io_submit", "io_uring_enter", "openat", "close"}
    kernel = any(name.startswith(("io_wq_", "io_worker", "iou_")) for name in names)
    for kind in FAMILIES:
        if kind.only_requests and not (requests or kernel or state == "D"):
            continue
        matches = [name for name in names if kind.names.fullmatch(name)]
        if matches and (kind.also is None or not kernel_stack or any(kind.also.search(name) for name in names)):
            return kind
    return None


def deepest(look: ThreadSnapshot, kind: Family) -> str:
    """Return the name that told the family."""
    names = look.kernel_stack or (look.wchan,)
    return next((name for name in names if kind.names.fullmatch(name)), names[0])
