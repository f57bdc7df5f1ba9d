"""Says whether a kill helps, by the mechanism that holds the VM up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from autopsy.dataclass import dataclass
from autopsy.diagnose.diagnosis import KillEffect
from autopsy.diagnose.queries.threads import looks, slept_through, threads
from autopsy.diagnose.queries.wording import count
from autopsy.facts.model.facts import Facts, ThreadFact
from autopsy.facts.subjects import Peer, Subject

# A wait that a fatal signal ends has it in its name: the kernel's *_killable() functions, TASK_KILLABLE.
KILLABLE = "killable"
ALSO_KILLABLE = frozenset({"autofs_wait"})  # wait_event_killable(), which is a part of it: fs/autofs/waitq.c

# helps: what holds the VM up lives in the process, and ends with it.
# needless: the VM goes on by itself once something outside of it is put right, or a command is given; nothing is lost.
# futile: threads sleep where no signal reaches them, or the new process would wait for the same thing in the kernel.
# unknown: it depends on what the mechanism's name does not tell.
BY_SIGNATURE: Mapping[str, KillEffect] = {
    "vm-ended": "needless",
    "process-stopped": "needless",
    "process-traced": "needless",
    "cgroup-frozen": "needless",
    "core-dumping": "unknown",  # it ends by itself when its core is written
    "vm-paused": "needless",
    "vm-prelaunch": "needless",
    "vm-io-error": "needless",
    "vm-internal-error": "helps",
    "vm-watchdog": "needless",
    "guest-panicked": "helps",
    "vm-shutdown": "helps",
    "vm-suspended": "needless",
    "vm-inmigrate": "unknown",
    "vm-migrated": "unknown",
    "vm-saving": "unknown",
    "vm-debug": "needless",
    "vm-switching-over": "unknown",
    "vm-in-postcopy": "needless",  # it would lose the VM, which goes on as soon as it is sent the rest
    "vm-awaits-client": "needless",
    "throttle-lock-self-deadlock": "helps",
    "throttle-stale-timer": "needless",
    "throttle-lost-timer": "needless",
    "throttle-timer-wait": "needless",
    "cgroup-io-limited": "needless",
    "host-fs-frozen": "futile",
    "fuse-daemon-silent": "futile",
    "storage-below-silent": "futile",
    "host-nfs-wait": "unknown",
    "host-ceph-wait": "unknown",
    "host-smb-wait": "unknown",
    "host-zfs-wait": "futile",
    "memory-reclaim": "needless",
    "mmap-lock-held": "unknown",
    "postcopy-page-wait": "needless",
    "snapshot-page-wait": "needless",  # it goes on with the snapshot, or without it once that is cancelled
    "host-writeback-throttled": "needless",
    "host-dm-suspended": "futile",
    "host-block-wait": "futile",
    "nbd-silent": "needless",
    "nbd-reconnecting": "needless",
    "rbd-silent": "unknown",
    "iscsi-silent": "needless",
    "libnfs-silent": "needless",
    "remote-image-silent": "unknown",
    "export-client-unread": "needless",
    "vhost-user-silent": "needless",
    "swtpm-silent": "needless",
    "peer-blocks-thread": "needless",
    "io-submit-blocks": "futile",
    "aio-completed-not-reaped": "helps",
    "aio-never-submitted": "helps",
    "aio-done-not-completed": "helps",
    "aio-pool-exhausted": "futile",
    "aio-in-kernel": "futile",
    "block-driver-wait": "unknown",
    "blkdebug-suspended": "needless",
    "serialising-wait": "unknown",
    "flush-queue-wait": "unknown",
    "qcow2-lock-wait": "unknown",
    "co-mutex-wait": "helps",
    "graph-lock-deadlock": "helps",
    "quiesce-leak": "helps",
    "main-loop-nested-poll": "unknown",
    "backup-holds-writes": "needless",
    "pve-backup-stalled": "unknown",
    "mirror-waits": "needless",
    "job-stalled": "needless",
    "job-waits-for-manager": "needless",
    "savevm-blocks-main-loop": "unknown",
    "migration-send-blocked": "needless",
    "ide-trim-drain-deadlock": "helps",
    "virtio-device-broken": "needless",
    "virtqueue-notify-off": "needless",
    "virtqueue-kick-lost": "needless",
    "virtqueue-interrupt-lost": "helps",
    "lsi-reentrancy-leak": "helps",
    "lsi-reselect-lost": "helps",
    "requests-fail": "unknown",  # what failed was told to the guest, and waits for nobody: what fails it lies beyond
    "virtio-scsi-tmf-deadlock": "helps",
    "lock-cycle": "helps",
    "mutex-self-deadlock": "helps",
    "bql-holder-blocked": "unknown",
    "chardev-blocked": "needless",
    "qmp-dispatcher-busy": "unknown",
    "descriptors-exhausted": "needless",  # a running process's limit can be raised from outside
    "monitor-held": "needless",
    "manager-silent": "needless",
    "monitor-unanswered": "unknown",
    "main-loop-blocked": "unknown",
    "main-loop-spins": "helps",
    "thread-asleep": "unknown",
    "rcu-drain-wait": "helps",
    "guest-spins": "unknown",  # a guest that computes looks the same: nobody saw that it is stuck
    "cpu-starved": "needless",
    "healthy": "needless",
    "unknown": "unknown",
    # What only an imported backtrace shows.
    "lock-taken-twice": "helps",
    "lock-order-with-bql": "helps",
    "worker-thread-waits": "helps",
    "spice-worker-waits": "unknown",  # its client may be closed
    "drain-waits-for-parked": "needless",
    "graph-lock-against-context": "helps",
    "nbd-negotiation-drained": "helps",
    "ide-cancel-drains": "helps",
    "job-end-nested": "helps",
    "poll-inside-poll": "helps",
    "context-held-over-poll": "helps",
    "qemu-crashed": "needless",  # it has ended by itself
    "thread-join-waits": "unknown",
    "rcu-readers-wait": "unknown",
    "vhost-user-question": "unknown",
    "job-end-drains": "unknown",
    "migration-thread-waits": "unknown",
    "vcpu-does-not-pause": "unknown",
    "chardev-write-waits": "unknown",
    "busy-with-bql": "unknown",
    "peer-question-waits": "unknown",
    "host-call-waits": "unknown",
}
# A server is known to be there only where it is a program of this host: of another host nobody here can say whether it
# comes back, and a VM whose server is lost for good must be started anew.
ONLY_WITH_A_PEER = frozenset({"nbd-silent", "nbd-reconnecting", "iscsi-silent", "libnfs-silent", "peer-blocks-thread"})


@dataclass(frozen=True, slots=True)
class Effect:
    """What a kill would do, and why; `why` is a clause that can follow "a kill is needless:"."""

    effect: KillEffect
    why: str


def of_kill(causes: Iterable[tuple[str, tuple[Subject, ...]]], facts: Facts) -> Effect:
    """Return what a kill would do to a VM with these causes, each a signature with its objects.

    Every cause has its say: a kill that one of them makes futile is futile, and one that helps against any helps.
    """
    effects = [_of_cause(signature, objects, facts.vm.pid) for signature, objects in causes] or ["unknown"]
    asleep = out_of_reach(facts)
    if "futile" in effects or (asleep and set(effects) != {"needless"}):
        return Effect("futile", _why_futile(asleep))
    if "helps" in effects:
        return Effect("helps", "what holds it up lives in the process, and ends with it")
    if set(effects) == {"needless"}:
        return Effect("needless", "the VM goes on by itself as soon as the cause is put right; nothing is lost")
    return Effect("unknown", "this evidence does not say whether the VM can go on without one")


def out_of_reach(facts: Facts) -> tuple[ThreadFact, ...]:
    """Return the threads that slept through both looks where no signal reaches them."""
    return tuple(thread for thread in threads(facts) if _is_out_of_reach(thread) and slept_through(thread))


def _of_cause(signature: str, objects: tuple[Subject, ...], own_pid: int) -> KillEffect:
    if any(isinstance(subject, Peer) and subject.pid == own_pid for subject in objects):
        return "helps"  # it waits for itself, and the kernel gives up what it serves when it ends
    if signature in ONLY_WITH_A_PEER and not any(isinstance(subject, Peer) for subject in objects):
        return "unknown"
    return BY_SIGNATURE.get(signature, "unknown")


def _is_out_of_reach(thread: ThreadFact) -> bool:
    return any(
        look.state == "D"
        and not any(KILLABLE in name or name in ALSO_KILLABLE for name in (look.wchan, *look.kernel_stack))
        for look in looks(thread)[:1]
    )


def _why_futile(asleep: tuple[ThreadFact, ...]) -> str:
    if not asleep:
        return "its requests are in the kernel, and its threads end only with them"
    places = sorted(
        {look.wchan or look.syscall.name or "the kernel" for thread in asleep for look in looks(thread)[:1]}
    )
    return f"{count(len(asleep), 'thread')} in State D ({', '.join(places[:3])}), which no signal reaches"
