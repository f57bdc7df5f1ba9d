"""Advice on peers, engines, the block layer, devices and the main loop: the first lines of their runbooks."""
# ruff: noqa: E501 - sentences for people, as the runbooks have them

from __future__ import annotations

from types import MappingProxyType

from autopsy.diagnose.counsel import Advice

ADVICE = MappingProxyType(
    {
        "io-submit-blocks": Advice(
            (
                "See it: `grep -l '^209 ' /proc/PID/task/*/syscall`, then `cat /proc/PID/task/TID/{wchan,stack}`",
                "The relief is below: make the storage answer (thaw, free space, bring the path back)",
                "When the storage answers, everything goes on; no kill",
            ),
            ("How long each call took before the capture: only tracing at the time can tell",),
        ),
        "aio-completed-not-reaped": Advice(
            (
                "See it by hand: Linux AIO's ring is the `/[aio]` mapping: head and tail at offsets 8 and 12; io_uring: `grep -E 'CqHead|CqTail' /proc/PID/fdinfo/FD`",
                "A question over QMP or any event of that loop can kick it: if I/O goes on after our capture, that is the proof of a lost wake-up",
                "`stop` then `cont` may re-attach the handlers when the main loop lives; else kill",
            ),
            ("Which handler was detached: the frozen core has it, with symbols",),
        ),
        "aio-never-submitted": Advice(
            (
                "Confirm: coroutines in luring_co_submit or laio_co_submit, empty rings, no request in /sys/block/*/inflight",
                "Any new request on that ring sets it going: read one sector of the same disk from the guest",
                "If the guest cannot issue one: kill after the seal",
            ),
            ("The queue's contents, unless the frozen core is examined with symbols",),
        ),
        "aio-done-not-completed": Advice(
            (
                "Confirm: `grep -c '' /proc/PID/task/*/syscall` shows no worker in pread, pwrite or fdatasync, while coroutines stand in thread_pool_submit_co",
                "Any event of that loop can kick it: a QMP question, a key on the console; if I/O goes on after this capture, that proves it",
                "`stop` and `cont` when the main loop lives; else kill after the seal",
            ),
            ("The bottom half's flags and the loop's notifier, unless the frozen core is examined with symbols",),
        ),
        "aio-pool-exhausted": Advice(
            (
                "Count them: `cat /proc/PID/task/*/syscall | awk '{print $1}' | sort | uniq -c` (17 pread64, 18 pwrite64, 295 preadv, 296 pwritev, 75 fdatasync)",
                "Set the stuck storage free: see the family that the stacks name",
                "No kill: threads in D do not die",
            ),
        ),
        "aio-in-kernel": Advice(
            (
                "See the device: `grep . /sys/block/*/inflight`, `iostat -x 2 3`, `cat /sys/kernel/debug/block/*/hctx*/busy | head`",
                "Bring the device or path back; look at multipath, iSCSI, NVMe",
                "Nothing on QEMU's side; a kill waits for the same I/O in the kernel (exit_aio, io_uring's cancel)",
            ),
            ("Which request the kernel holds: debugfs tells it only while it waits",),
        ),
        "block-driver-wait": Advice(
            (
                'See the chain: QMP `{"execute":"query-named-block-nodes","arguments":{"flat":true}}`, if the report says that it is safe',
                "Nothing before that",
                "The frozen core is in the bundle: the VM is not needed for the answer",
            ),
        ),
        "blkdebug-suspended": Advice(
            (
                "See the node: QMP query-named-block-nodes shows `blkdebug`; `tr '\\0' '\\n' < /proc/PID/cmdline | grep blkdebug`",
                'Resume: HMP `qemu-io DEVICE "resume TAG"`, `qemu-io DEVICE "remove_break TAG"`',
                "Nothing is lost: the requests go on",
            ),
        ),
        "serialising-wait": Advice(
            (
                "See the line: with symbols `waiting_for` of each tracked request in this report",
                "Set free what the first in line waits for",
                "If nothing is: kill after the seal, and report it with the bundle",
            ),
            ("The order of the line, unless the frozen core is examined with symbols",),
        ),
        "flush-queue-wait": Advice(
            (
                "See the flush: a worker in fdatasync (system call 75), its stack below",
                "Set the storage free; stop other heavy writers on the same file system",
                "No kill",
            ),
        ),
        "qcow2-lock-wait": Advice(
            (
                "See the holder: with symbols this report names it; without, look for the image's other requests in an AIO engine",
                "Set free what the metadata request waits for",
                "If nothing holds it: kill after the seal; check with `qemu-img check` before the next start",
            ),
            ("Who held the lock, unless the frozen core is examined with symbols",),
        ),
        "co-mutex-wait": Advice(
            (
                "With symbols: CoMutex.holder of the mutex, and whether that coroutine lives",
                "Nothing",
                "Kill after the seal; report it with the bundle",
            ),
            ("Which coroutine held it, unless the frozen core is examined with symbols",),
        ),
        "graph-lock-deadlock": Advice(
            (
                "See it: the main thread in aio_poll under bdrv_graph_wrlock, bdrv_drained_begin or bdrv_change_aio_context; coroutines in bdrv_graph_co_rdlock",
                "A missed wake-up is cured by any event of the main loop: a key on the console, a new connection to a VNC port",
                "Else kill after the seal",
            ),
            ("Which reader was counted: the frozen core has it, with symbols",),
        ),
        "quiesce-leak": Advice(
            (
                "See whether a drain is under way: the main thread's state in this report",
                "If a drain waits: set free what it waits for",
                "After a leak: any full drain may balance nothing; kill after the seal",
            ),
            ("Who took the count and never gave it back",),
        ),
        "main-loop-nested-poll": Advice(
            (
                "See it: the main thread in ppoll, and the BQL's owner is the main thread itself",
                "Set free the request it waits for: see the primary cause",
                "When that completes, the command goes on and everything lives again",
            ),
            ("Nothing that the primary cause does not lose",),
        ),
        "backup-holds-writes": Advice(
            (
                'See the backup: `{"execute":"query-jobs"}`, `{"execute":"query-backup"}` under Proxmox, the backup server\'s own state',
                "Make the target answer; or cancel the backup: `vzdump --stop`, `virsh domjobabort NAME`, QMP job-cancel, when QMP lives",
                "Cancelling lets the writes go; the backup is lost, the guest is not",
            ),
            ("Which target's request was waited for",),
        ),
        "pve-backup-stalled": Advice(
            (
                "See the task: `tail -f /var/log/pve/tasks/active`, `qm monitor`'s `info backup`, `proxmox-backup-client status`",
                "Make the target answer: disk space and load of the backup server, the network",
                "If it does not come back: kill after the seal",
            ),
            ("How far each disk's backup was",),
        ),
        "mirror-waits": Advice(
            (
                'See the job: `{"execute":"query-jobs"}`, `{"execute":"query-block-jobs"}` twice',
                "Make the target answer",
                "Cancel when the main loop lives: QMP `block-job-cancel` with force, `qm disk move` aborted",
            ),
        ),
        "job-stalled": Advice(
            (
                'Look twice: `{"execute":"query-jobs"}`: current-progress; `{"execute":"query-block-jobs"}`: speed',
                "Raise the speed: `block-job-set-speed`, `virsh blockjob NAME DEV --bandwidth N`",
                "Cancel it when nothing helps: `block-job-cancel`, `virsh blockjob NAME DEV --abort`; this drains, so only when no request is stuck",
            ),
        ),
        "job-waits-for-manager": Advice(
            (
                'Ask: `{"execute":"query-jobs"}`: status',
                "Nothing",
                "Finish it through its owner: `virsh blockjob NAME DEV --pivot` or `--abort`; by hand `job-complete`, `job-finalize`, `job-dismiss`",
            ),
        ),
        "savevm-blocks-main-loop": Advice(
            (
                "See whether bytes move: `grep write_bytes /proc/PID/io`, twice",
                "Wait as long as bytes move; set the target free if none do",
                "Nothing can cancel a savevm: kill only if the target is lost",
            ),
            ("The state that was not written yet: it is the guest's memory",),
        ),
        "migration-send-blocked": Advice(
            (
                "See who reads: `ss -tnpi | grep PID`, `lsof -p PID | grep -E 'pipe|FIFO'`; the reader's own state",
                "Make the reader read; or `migrate-pause`/`migrate_cancel` if QMP lives",
                "Ending the reader breaks the pipe: the migration fails, and the VM goes on here",
            ),
            ("How much of the state had been taken",),
        ),
        "ide-trim-drain-deadlock": Advice(
            (
                "See it: the main thread in aio_poll under blk_drain or bdrv_drained_begin; a discard parked in blk_wait_while_drained",
                "Nothing sets it free",
                "Kill after the seal",
            ),
            ("Nothing beyond the frozen core",),
        ),
        "virtqueue-notify-off": Advice(
            (
                "See virtqueues.json (with symbols, heap.json) at both looks: notification off, inuse 0, last_avail_idx stands still",
                "`stop` then `cont` re-enables the notifications: nothing is lost",
                "The same; no kill is needed",
            ),
            ("The queue's state, unless the frozen core is examined with symbols",),
        ),
        "virtqueue-kick-lost": Advice(
            (
                "See it: `cat /proc/PID/fdinfo/FD` with eventfd-count above 0, and FD in no poll set of this report",
                "`stop` then `cont` attaches the handlers again",
                "The same; kill only if it does not help",
            ),
            ("Which switch detached the handler",),
        ),
        "virtqueue-interrupt-lost": Advice(
            (
                "See it: the guest notifier's eventfd-count above 0; used index ahead of what the guest has seen",
                "None from outside; a reset of the guest's driver (unbind, bind) may help",
                "Reset the guest",
            ),
            ("The vector's mask as the guest had set it",),
        ),
        "lsi-reentrancy-leak": Advice(
            (
                "See the guest's log: `unexpected disconnect`, SCSI resets",
                "None",
                "Kill after the seal; the counter lives in the process",
            ),
            ("The counter, unless the frozen core is examined with symbols",),
        ),
        "lsi-reselect-lost": Advice(
            (
                "With symbols: the controller's queue, `current`, `waiting` and the istat registers in this report",
                "None from outside",
                "A guest reset re-initialises the controller; else kill after the seal",
            ),
            ("The controller's registers, which alone tell the guest's part from QEMU's",),
        ),
        "virtio-scsi-tmf-deadlock": Advice(
            (
                "See it: a thread in futex with its own id as owner, under virtio_scsi_do_tmf_aio_context or scsi_req_cancel_async",
                "None",
                "Kill after the seal",
            ),
            ("Which command was to be aborted",),
        ),
        "lock-cycle": Advice(
            (
                "See the ring: futex waits and owners in this report; by hand `cat /proc/PID/task/*/syscall | grep '^202 .* 0x80 0x2'`",
                "None",
                "Kill after the seal; report it with the bundle",
            ),
            ("Nothing beyond the frozen core",),
        ),
        "mutex-self-deadlock": Advice(
            (
                "See it: the futex's owner equals the waiter, in this report",
                "None",
                "Kill after the seal; report it with the bundle",
            ),
            ("Nothing beyond the frozen core",),
        ),
        "bql-holder-blocked": Advice(
            (
                "See the owner: the BQL's owner in this report, then `cat /proc/PID/task/TID/{stack,syscall,wchan}`",
                "Set free what it sleeps on",
                "When that returns, everything goes on",
            ),
        ),
        "main-loop-blocked": Advice(
            (
                "See where it sleeps: `cat /proc/PID/{wchan,syscall,stack}`, and on what: `ls -l /proc/PID/fd`",
                "Give it what it waits for: the reader of a pipe (`cat FIFO >/dev/null`), the lease or lock of a file (`lslocks`), the end of a child",
                "When the call returns, everything goes on; where it cannot, kill after the seal",
            ),
            ("Who had asked for the command that it works on: only the manager's log tells",),
        ),
        "main-loop-spins": Advice(
            (
                "See it: `top -H -p PID`; `perf top -t TID`",
                "Take the load away that drives it: network, console, USB",
                "If it never sleeps again: kill after the seal",
            ),
            ("What it was looping over",),
        ),
        "chardev-blocked": Advice(
            (
                "See the other end: `ss -xp | grep PID`, `ls -l /proc/PID/fd | grep -E 'pts|pipe'`",
                "Read it: `socat - UNIX:/path`, or close the reader that hangs",
                "When it is read, the VM goes on",
            ),
        ),
        "rcu-drain-wait": Advice(
            (
                "See it: the main thread in drain_call_rcu, the call_rcu thread waiting for the BQL",
                "None",
                "Kill after the seal",
            ),
            ("Which reader held the grace period",),
        ),
        "qmp-dispatcher-busy": Advice(
            (
                "See the command: in this report, by the coroutine's frames; the manager's log",
                "Set free what the command waits for",
                "When it ends, the queued questions are answered, also those that nobody waits for any more",
            ),
            ("Which client sent the command",),
        ),
        "monitor-held": Advice(
            (
                "See who holds it: `ss -xp | grep qmp` (the peer's pid), `lsof /path/to.qmp`",
                'Ask the holder to disconnect; or go through it: `virsh qemu-monitor-command NAME --pretty \'{"execute":"query-status"}\'`',
                "End a forgotten client by its own pid; never the VM",
            ),
        ),
        "monitor-unanswered": Advice(
            (
                "See the main thread: its state, stack and the BQL's owner in this report",
                "Set free what holds the main loop",
                "The queued questions are answered then",
            ),
        ),
        "guest-spins": Advice(
            (
                "See where it spins: `perf kvm --guest top -p PID`, or `virsh qemu-monitor-command NAME --hmp 'info registers'` twice",
                "Let it dump its state: `virsh inject-nmi NAME`, SysRq on the console (`virsh send-key NAME KEY_LEFTALT KEY_SYSRQ KEY_T`)",
                "Keep its memory, then reset: `virsh dump --memory-only NAME FILE`; `virsh reset NAME`",
            ),
            ("The guest's memory and registers, which alone tell where it spins",),
        ),
        "cpu-starved": Advice(
            (
                "See it: `cat /proc/pressure/cpu`, `cat /proc/PID/task/*/schedstat` twice (second field: ns waited), `mpstat -P ALL 2 3`",
                "Raise the cap: `systemctl set-property --runtime SCOPE CPUQuota=`; move another VM away",
                "No kill: it runs when there is CPU",
            ),
            ("Who took the CPUs",),
        ),
        "healthy": Advice(
            (
                'Look inside the guest: its console, its agent (`qm agent VMID ping`, `virsh qemu-agent-command NAME \'{"execute":"guest-ping"}\'`), its journal',
                "Nothing to relieve",
                "Do not kill this VM for a hang: QEMU owes the guest nothing",
            ),
        ),
    }
)
