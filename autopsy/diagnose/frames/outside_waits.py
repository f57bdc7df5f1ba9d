"""What lies outside of QEMU's own waits: peers, the host's calls, and work that goes on while all others wait."""

from __future__ import annotations

from autopsy.bundle.syscalls import SLEEP_CALLS
from autopsy.diagnose.diagnosis import Where
from autopsy.diagnose.frames.block_waits import JOBS, called, match, nothing
from autopsy.diagnose.frames.stacks import NamedStack, WaitKind, stacks
from autopsy.diagnose.function_names import DISPATCH
from autopsy.diagnose.queries.wording import sentence
from autopsy.diagnose.signature import Judgement, Match, Signature
from autopsy.facts.model.facts import Facts, Role

SOCKET_CALLS = frozenset({"recvmsg", "recvfrom", "sendmsg", "sendto", "connect", "recvmmsg"})
FILE_CALLS = frozenset(
    {"lseek", "pread64", "pwrite64", "preadv", "pwritev", "preadv2", "pwritev2", "fsync", "fdatasync", "fallocate"}
    | {"ftruncate", "openat", "close", "fstat", "newfstatat", "statx", "io_submit", "copy_file_range", "syncfs"}
    | {"sync_file_range", "io_uring_enter", "fcntl", "flock"}
)
MEMORY_CALLS = frozenset({"madvise", "mmap", "munmap", "mremap"})  # of a range of the guest's memory, they take long
MANY = 4  # workers that are all in the host's storage at one moment
ON_HOST = (
    "cdrom_",
    "hdev_",
    "handle_aiocb",
    "raw_",
    "host_",
    "sg_",
    "vhost_kernel_",
    "vfio_",
    *("tap_", "kvm_vm_ioctl", "kvm_device_ioctl", "drm", "amdgpu_", "virgl_", "vrend_", "gbm_"),
)  # drivers whose calls may block
HOST_DEVICES = ("vfio_", "vhost_kernel_", "tap_", "kvm_", "drm", "amdgpu_", "virgl_", "vrend_", "gbm_")
STREAM_CALLS = frozenset({"read", "write", "readv", "writev", "poll", "ppoll"})
VHOST_USER = ("vhost_user_", "vhost_set_", "vhost_kernel_", "vhost_backend_")
# Functions of libraries and drivers that ask a server and wait for its answer.
PEERS = (
    "rados_",
    "rbd_",
    "librbd",
    "librados",
    "ceph",
    "Objecter",
    "qemu_rbd",
    "glfs_",
    "qemu_gluster",
    "syncop_",
    "iscsi_",
    "nfs_",
    "ssh_",
    "sftp_",
    "curl_",
    "nbd_",
    "slirp_",
    "sorecvfrom",
    "qio_channel_socket_",
    "qio_channel_tls_",
    "tpm_emulator",
    "tpm_util",
    "scsi_pr_",
    "pr_manager",
    "libvirt",
    "usbredir",
    *("proxmox_backup_", "proxmox_restore_"),
    *("getaddrinfo", "gaih_", "__res_", "res_n"),  # a name server
    *("_xcb_", "xcb_", "_XReply", "_XEvents", "XSync", "wl_display_"),  # the desktop that the window is on
    *("pa_", "pw_", "snd_pcm_", "jack_", "g_dbus_", "dbus_"),  # its sound, and its bus
    "tcp_chr_wait_connected",
)
FIRST_CLIENT = ("qio_net_listener_wait_client", "tcp_chr_accept_server_sync")  # wait=on: the VM starts with it
# Whoever polls in one of these waits for a server's or a helper's answer, and serves nothing else meanwhile.
PEER_POLLS = ("nbd_client_connect", "nbd_co_", "iscsi_", "nfs_", "ssh_", "curl_", "qemu_rbd_", "qemu_gluster_", "tpm_")
DEVICE_POLLS = ("nvme_",)  # QEMU's own driver of a device of the host
USB = ("libusb_", "usbi_", "usb_host_")
CHARDEV = ("qemu_chr_write_buffer", "qemu_chr_write", "qemu_chr_fe_write_all", "qemu_chr_fe_write")
DEVICES = (
    *("ehci_", "xhci_", "uhci_", "ohci_", "usb_", "ahci_", "ide_", "scsi_", "lsi_", "megasas_", "mptsas_", "nvme_"),
    *("virtio_", "vring_", "e1000", "rtl8139_", "vga_", "qxl_", "sdhci_", "pvscsi_", "esp_", "vmxnet3_", "hda_"),
)
BLOCK = ("qcow2_", "qcow_", "qed_", "vmdk_", "vhdx_", "vdi_", "vpc_", "hbitmap_", "bdrv_", "blk_")


def _blocks_others(stack: NamedStack) -> bool:
    return stack.holds_bql or stack.thread.role is Role.IOTHREAD


def _vhost_user(facts: Facts) -> Judgement:
    known_stacks = stacks(facts)
    for stack in known_stacks:
        place = stack.begins("vhost_user_")
        if place and (stack.wait is WaitKind.CALL or stack.begins("qemu_chr_fe_read_all", "tcp_chr_", "qio_channel_")):
            held = " and holds the BQL" if stack.holds_bql else ""
            return match(
                f"{sentence(called(stack))} asks a vhost-user back end ({place}) and waits for its answer{held}", stack
            )
    return nothing("no thread asks a vhost-user back end", known_stacks)


def _chardev(facts: Facts) -> Judgement:
    known_stacks = stacks(facts)
    for stack in known_stacks:
        place = stack.has(*CHARDEV)
        if place and stack.wait in {WaitKind.CALL, WaitKind.LOCK, WaitKind.RESTS}:
            return match(
                f"{sentence(called(stack))} writes to a character device ({place}) whose reader does not read", stack
            )
    return nothing("no thread writes to a character device", known_stacks)


def _peer(facts: Facts) -> Judgement:
    """A thread that others need asks a program at the other end of a connection, and waits there."""
    known_stacks = stacks(facts)
    for stack in known_stacks:
        if not _blocks_others(stack) or stack.wait not in {
            WaitKind.CALL,
            WaitKind.CONDITION,
            WaitKind.SEMAPHORE,
            WaitKind.POLL,
            WaitKind.RUNS,
        }:
            continue
        place = stack.begins(*PEERS)
        if client := stack.has(*FIRST_CLIENT):
            words = f"{sentence(called(stack))} waits in {client} for the first client of a socket"
            return match(words, stack, where="vm-state")
        if stack.wait is WaitKind.POLL and stack.polls_for:
            if not stack.polls_for[0].startswith(PEER_POLLS):
                continue
            place, asks = stack.polls_for[0], True
        else:
            asks = (
                stack.call in SOCKET_CALLS
                or bool(place and stack.call in STREAM_CALLS | SLEEP_CALLS | {"accept", "accept4"})
                or bool(place and stack.wait in {WaitKind.CONDITION, WaitKind.SEMAPHORE})
            )
        if asks:
            return match(
                f"{sentence(called(stack))} waits in {place or stack.call} for a program at the other end", stack
            )
    return nothing("no thread that others need waits for a peer", known_stacks)


def _host(facts: Facts) -> Judgement:
    """A thread that others need is in a system call on a file, or every request is in one."""
    known_stacks = stacks(facts)
    for stack in (blocking for blocking in known_stacks if _blocks_others(blocking)):
        if stack.wait is WaitKind.CALL and (what := _of_the_host(stack)):
            return match(f"{sentence(called(stack))} is in {stack.call} on {what}, and others wait for it", stack)
        device = stack.begins(*USB) or next((name for name in stack.polls_for[:1] if name.startswith(DEVICE_POLLS)), "")
        if device and stack.wait in {WaitKind.CALL, WaitKind.CONDITION, WaitKind.POLL}:
            return match(
                f"{sentence(called(stack))} waits in {device} for a device of the host that does not complete what it "
                "was asked for",
                stack,
            )
    working = [stack for stack in known_stacks if stack.thread.role is Role.WORKER and stack.call in FILE_CALLS]
    drained = any(stack.wait is WaitKind.POLL for stack in known_stacks)
    if working and (drained or len(working) >= MANY):
        return match(
            f"{len(working)} of QEMU's worker threads are in {working[0].call} on the host's storage"
            f"{', and a drain waits for them' if drained else ''}",
            *working[:4],
        )
    return nothing("no thread that others need is in a call on the host's storage", known_stacks)


def _of_the_host(stack: NamedStack) -> str:
    """Return what of the host a blocking call works on, empty where it may be anything."""
    if stack.call in MEMORY_CALLS:
        return "the guest's memory"
    if stack.call in {"read", "write", "writev", "ioctl"} and (place := stack.begins(*ON_HOST)):
        return "a device of the host" if place.startswith(HOST_DEVICES) else "the host's storage"
    return "the host's storage" if stack.call in FILE_CALLS else ""


def _spice(facts: Facts) -> Judgement:
    """A thread with the BQL has asked SPICE's own thread for something, which that does when its client lets it."""
    known_stacks = stacks(facts)
    waiting = any(stack.wants_bql for stack in known_stacks)
    workers = [stack for stack in known_stacks if stack.begins("red_worker_main", "red_channel_client_wait", "red_")]
    for stack in known_stacks:
        if stack.wait is not WaitKind.CALL or not stack.begins("dispatcher_") or not (stack.holds_bql and waiting):
            continue
        worker = next((other for other in workers if other is not stack and other.begins(*OF_A_CLIENT)), None)
        words = (
            f"{sentence(called(stack))} waits in {stack.begins('dispatcher_')} for SPICE's worker, with the BQL held"
        )
        if worker is not None:
            asked = f", which waits in {worker.begins(*OF_A_CLIENT)} for its client"
            return match(f"{words}{asked}", stack, worker, where="peer")
        return match(words, stack)
    return nothing("no thread waits for SPICE's worker with the BQL held", known_stacks)


OF_A_CLIENT = ("red_channel_client_", "red_channel_", "red_client_", "red_stream_", "reds_stream_")


WORK = frozenset(
    """
    main_loop_wait qemu_main_loop main_loop coroutine_trampoline aio_bh_call aio_bh_poll aio_dispatch aio_ctx_dispatch
    g_main_context_dispatch qemu_bh_poll os_host_main_loop_wait
    """.split()  # noqa: SIM905 - words read best as words
)


def _busy(facts: Facts) -> Judgement:
    """The main thread, or a vCPU that holds the BQL, works on and on."""
    known_stacks = stacks(facts)
    waiting = [stack for stack in known_stacks if stack.wants_bql]
    for stack in known_stacks:
        if stack.wait is not WaitKind.RUNS or not stack.holds_bql:
            continue
        if not waiting and not (stack.is_main and _is_work(stack)):
            continue
        return _works(stack)
    return nothing("no thread that holds the BQL runs", known_stacks)


def _is_work(stack: NamedStack) -> bool:
    """Tell whether it is QEMU's main thread at work: one function without anything around it may be anybody's."""
    return bool(stack.begins(*JOBS) or WORK.intersection(stack.names))


def _works(stack: NamedStack) -> Match:
    job = stack.begins(*JOBS)
    device = next((name for name in stack.names if name in DISPATCH), "")
    emulates = bool(device or stack.begins(*DEVICES))
    where: Where = "job" if job else "device" if emulates else "block" if stack.begins(*BLOCK) else "control"
    place = next((name for name in stack.names if name), "")
    inside = _emulation(stack) if device else job or _outer(stack)
    return match(
        f"{sentence(called(stack))} works in {place}{f', for {inside},' if inside else ''} with the BQL held, and all "
        "others wait for it",
        stack,
        where=where,
    )


def _emulation(stack: NamedStack) -> str:
    """Return the device model's function: the outermost below the memory region's dispatch."""
    before = ""
    for name in stack.names:
        if name in DISPATCH:
            return before
        before = name or before
    return before


def _outer(stack: NamedStack) -> str:
    loop = (
        "main_loop",
        "glib_pollfds",
        "os_host_main_loop",
        "g_main",
        "aio_",
        "qemu_main",
        "qemu_default",
        "coroutine_",
    )
    named = [name for name in stack.names[1:] if name and name != "main" and not name.startswith(loop)]
    return named[-1] if named else ""


SIGNATURES_FIRST = (
    Signature("vhost-user-question", "peer", "a vhost-user back end is asked and does not answer", _vhost_user),
)
SIGNATURES = (
    Signature("chardev-write-waits", "control", "a character device's reader is waited for", _chardev),
    Signature("spice-worker-waits", "device", "SPICE's worker is waited for with the BQL held", _spice),
    Signature("peer-question-waits", "peer", "a peer is asked and does not answer", _peer),
    Signature("host-call-waits", "host", "a call on the host's storage is waited for", _host),
    Signature("busy-with-bql", "control", "a thread works with the BQL held", _busy),
)
