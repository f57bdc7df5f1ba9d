"""Advice on processes, run states, throttling and the host: the first lines of their runbooks."""
# ruff: noqa: E501 - sentences for people, as the runbooks have them

from __future__ import annotations

from types import MappingProxyType

from autopsy.diagnose.counsel import Advice

ADVICE = MappingProxyType(
    {
        "process-stopped": Advice(
            (
                "See it and its tracer: `grep -E '^(State|TracerPid|SigPnd|SigBlk)' /proc/PID/status`; `T (stopped)` with TracerPid 0 is a signal",
                "Nothing is lost by waiting: take the capture first, then continue it",
                "Continue it: `kill -CONT PID`, then read State again after a second; if it is T once more, something stops it on purpose",
            ),
            ("Who sent the signal: only the audit log can tell, and only if it was on",),
        ),
        "process-traced": Advice(
            (
                "Find the tracer: `grep TracerPid /proc/PID/status`, then `ps -o pid,ppid,stat,etime,args -p TRACER`",
                "Let the tracer detach by itself: `detach` and `quit` in gdb, or wait for its batch to end",
                "If the tracer must go: `kill -KILL TRACER`, at once `kill -CONT PID` (it clears a pending SIGSTOP), then check that no thread is in T or t",
            ),
            ("What the debugger was looking at, if its session dies with it",),
        ),
        "cgroup-frozen": Advice(
            (
                'Walk from the VM\'s group up: `p=/sys/fs/cgroup$(sed -n \'s/^0:://p\' /proc/PID/cgroup); while [ "$p" != /sys/fs/cgroup ]; do echo "$p $(cat $p/cgroup.freeze) $(grep frozen $p/cgroup.events)"; p=${p%/*}; done`',
                "Nothing is lost by waiting; look for the job that froze it before you thaw: a snapshot may be half done",
                "Thaw the group whose cgroup.freeze is 1: `systemctl thaw UNIT` or `echo 0 > /sys/fs/cgroup/…/cgroup.freeze`; under v1 `echo THAWED > …/freezer.state`",
            ),
            ("Which job froze the group, if its own log does not tell",),
        ),
        "vm-paused": Advice(
            (
                'Ask why: `virsh domstate --reason NAME`; `qm status VMID --verbose`; in QMP `{"execute":"query-status"}`',
                "Nothing is lost by waiting; look for a backup or snapshot that still runs: `query-jobs`, `qm listsnapshot VMID`",
                "Resume: `qm resume VMID`, `virsh resume NAME`, or QMP `cont`",
            ),
            ("Who paused it, if neither the manager's log nor the monitor's other client tells",),
        ),
        "vm-prelaunch": Advice(
            (
                "Ask: `{\"execute\":\"query-status\"}` gives `prelaunch`; `tr '\\0' '\\n' < /proc/PID/cmdline | grep -x -e -S`",
                "Do not send `cont` before you know what the manager still had to do (hotplug, volumes, secrets)",
                "Let the manager finish or start again: `virsh resume NAME`, `qm resume VMID`, else `virsh destroy`/`qm stop` and start",
            ),
        ),
        "vm-io-error": Advice(
            (
                'Ask which disk: `{"execute":"query-block"}` and read `io-status`; `virsh domblkerror NAME`',
                "Make room or repair first; resuming before that only fails again",
                "Then resume: `qm resume VMID`, `virsh resume NAME`, or QMP `cont`; the request is retried",
            ),
            ("The request that failed, and whether it would succeed now",),
        ),
        "vm-internal-error": Advice(
            (
                "Read QEMU's log: `tail -60 /var/log/libvirt/qemu/NAME.log`, or under Proxmox `journalctl -t QEMU -n 100`",
                "Keep the guest's memory if it matters: `virsh dump --memory-only NAME FILE`",
                "Reset: `qm reset VMID`, `virsh reset NAME`",
            ),
            ("The registers of every vCPU at the failure, unless QEMU's log or the frozen core holds them",),
        ),
        "vm-watchdog": Advice(
            (
                'Ask: `{"execute":"query-status"}` gives `watchdog`; `virsh dumpxml NAME | grep -A1 watchdog`',
                "Keep the guest's memory for its own crash tools: `virsh dump --memory-only NAME FILE`",
                "Then `virsh resume NAME` or reset it",
            ),
            ("The guest's memory at the moment it stopped feeding the watchdog",),
        ),
        "guest-panicked": Advice(
            (
                'Ask: `{"execute":"query-status"}` gives `guest-panicked`; `virsh domstate --reason NAME` says `crashed (panicked)`',
                "Keep the memory before you reset: `virsh dump --memory-only NAME FILE`, then crash(8) or drgn",
                "Reset it: `virsh reset NAME`, `qm reset VMID`",
            ),
            ("The guest's memory, which alone can tell why it panicked",),
        ),
        "vm-shutdown": Advice(
            (
                'Ask: `{"execute":"query-status"}` gives `shutdown`',
                "Nothing to relieve",
                "Start it again by its manager: `virsh destroy NAME; virsh start NAME`, `qm stop VMID; qm start VMID`",
            ),
        ),
        "vm-suspended": Advice(
            (
                'Ask: `{"execute":"query-status"}` gives `suspended`; `virsh domstate NAME` says `pmsuspended`',
                "Nothing to relieve",
                'Wake it: `virsh dompmwakeup NAME`, or QMP `{"execute":"system_wakeup"}`',
            ),
        ),
        "vm-inmigrate": Advice(
            (
                'Ask both sides: `{"execute":"query-migrate"}`; `virsh domjobinfo NAME` on the source',
                "Do not send `cont` here while the source may still run the VM: two writers destroy the disk",
                "If the source has gone for good and its VM is dead, end this process by its manager and start the VM anew",
            ),
        ),
        "vm-migrated": Advice(
            (
                'Ask: `{"execute":"query-migrate"}` here, `query-status` on the destination',
                "Nothing before you are sure where the VM runs",
                "If the destination is surely dead and never ran: QMP `cont` here; else end this process by its manager",
            ),
        ),
        "vm-saving": Advice(
            (
                "See whether bytes move: `grep -E 'write_bytes|read_bytes' /proc/PID/io`, twice",
                "Wait as long as bytes move",
                "If none move, find what the main thread waits for: its kernel stack, and the parked coroutines of this report",
            ),
        ),
        "vm-debug": Advice(
            (
                "Find the stub and its client: `tr '\\0' '\\n' < /proc/PID/cmdline | grep -A1 -E -e '^-(s|gdb)$'`; `ss -tnp`",
                "Ask whoever debugs before you continue it",
                "QMP `cont`, or `detach` in the debugger",
            ),
        ),
        "throttle-lock-self-deadlock": Advice(
            (
                "See the owner without touching the VM: `cat /proc/PID/task/*/syscall | grep '^202 .* 0x80 0x2'`; the int at the futex's address + 8 is the owner's thread id, and it equals the waiter's",
                "Do NOT run query-block, `info block`, qom-get of limits, block_set_io_throttle, `virsh blkdeviotune` or `virsh domblkinfo`: each kills QMP too",
                "The mutex can never be released: after the seal, kill the process (`qm stop VMID`, `virsh destroy NAME`) and start it",
            ),
            ("Which request of which disk closed the ring, unless the frozen core is examined with QEMU's symbols",),
        ),
        "throttle-stale-timer": Advice(
            (
                'Compare the limits with what moves: `{"execute":"qom-get","arguments":{"path":"/objects/GROUP","property":"limits"}}`, and query-blockstats twice',
                "Wake the queue without losing anything: QMP block_set_io_throttle on a disk of the group with the same limits restarts it",
                "If the queue does not wake: `stop` then `cont` drains through the throttle (only when nothing else is stuck)",
            ),
            (
                "Which rewrite of the limits left the timer: compare this bundle's clocks with the log of whatever rewrites them",
            ),
        ),
        "throttle-lost-timer": Advice(
            (
                "With debug symbols this report shows it: pending requests, the armed flag, and timers without an expiry",
                "Wake the queue: QMP block_set_io_throttle on a disk of the group with the same limits",
                "If that does not help: remove the limits (all zero), which drains the disk; only when nothing below is stuck",
            ),
            ("The group's tokens, timers and queues as they stood: they are in the frozen core alone",),
        ),
        "throttle-timer-wait": Advice(
            (
                'Read the limits: `qm config VMID | grep -E \'mbps|iops\'`, `virsh blkdeviotune NAME DEV`, QMP query-block (`bps`, `iops`, `group`), for a filter node `{"execute":"qom-get","arguments":{"path":"/objects/GROUP","property":"limits"}}`',
                "Raise the limit: `virsh blkdeviotune NAME DEV --total-bytes-sec N`, `qm set VMID --scsi0 VOLUME,mbps=N`, QMP block_set_io_throttle; for a throttle-group object see throttle-stale-timer: qom-set wakes nothing",
                "No kill is needed; if the limit cannot be raised, remove it (all zero: this drains the disk)",
            ),
            ("How full the buckets were, and when the timer was due, unless the frozen core is examined with symbols",),
        ),
        "host-fs-frozen": Advice(
            (
                "See the stacks: `grep -l percpu_rwsem /proc/PID/task/*/stack | xargs -I{} cat {}`",
                "Thaw it: `fsfreeze --unfreeze MOUNTPOINT`; after a failed LVM snapshot `dmsetup resume DEVICE`",
                "No kill: threads in D do not die of SIGKILL before the thaw",
            ),
            ("Which process froze the file system, if it has not logged it",),
        ),
        "fuse-daemon-silent": Advice(
            (
                "Find the daemon and its state: `grep fuse /proc/PID/mountinfo`, `fuser -v /dev/fuse`, `grep -E '^(Name|State)' /proc/DAEMON/status`",
                "Make the daemon answer: `kill -CONT DAEMON` if it is stopped; look at its own network and log",
                "If it cannot be brought back: `echo 1 > /sys/fs/fuse/connections/N/abort` ends every request with an error; the VM pauses or its guest sees errors",
            ),
            ("What the daemon itself was waiting for: capture its stack too before you restart it",),
        ),
        "host-nfs-wait": Advice(
            (
                "See the client's view: `dmesg -T | grep 'nfs: server'`, `nfsstat -c`, `cat /proc/PID/task/*/stack | grep -E 'rpc_|nfs'`",
                "Bring the server or the network back; nothing on this host needs doing",
                "If the server is gone for good: `umount -f -l MOUNT` gives errors to the waiting requests; expect the guest's file system to go read-only",
            ),
            ("Whether the requests reached the server: capture its side too",),
        ),
        "host-ceph-wait": Advice(
            (
                "See the cluster: `ceph -s`, `ceph health detail`, `ceph osd blocklist ls`, `ceph pg dump_stuck`",
                "Repair the cluster: slow or full OSDs, placement groups below min_size",
                "Blocklisted client: unmap and map again after the VM is ended: `rbd unmap -o force DEVICE`",
            ),
            ("Which object of which OSD was waited for: osdc in debugfs tells only while it waits",),
        ),
        "host-smb-wait": Advice(
            (
                "See the client: `cat /proc/fs/cifs/DebugData`, `dmesg -T | grep -i cifs`",
                "Bring the server or the network back",
                "If it is gone for good: `umount -f -l MOUNT`; the guest sees errors",
            ),
        ),
        "host-zfs-wait": Advice(
            (
                "See the pool: `zpool status -x`, `zpool list -o name,size,cap,frag,health`, `zpool iostat -vl 2 3`",
                "A suspended pool: repair the device, then `zpool clear POOL`",
                "Nothing on QEMU's side: the requests end when the pool does",
            ),
            ("The stacks of ZFS's own kernel threads: `echo w > /proc/sysrq-trigger` writes them to dmesg",),
        ),
        "memory-reclaim": Advice(
            (
                "See pressure and limits: `cat /proc/pressure/memory`, `g=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/PID/cgroup); grep . $g/memory.{current,high,max,events}`",
                "Raise the limit: `systemctl set-property --runtime SCOPE MemoryHigh=infinity`; stop or move another VM",
                "The VM recovers by itself once there is room; no kill",
            ),
            ("Who took the memory: `ps`, `slabtop` and `smem` tell it only while it is taken",),
        ),
        "mmap-lock-held": Advice(
            (
                "See it without taking the lock: `cat /proc/PID/task/*/stack | grep -E 'mmap|rwsem'` (stack, wchan and status do not take it)",
                "Do not run `ps aux`, `top -c` or `cat /proc/PID/{maps,smaps,cmdline}` on it: they hang too",
                "Set free what the holder waits for: storage behind a mapped file, reclaim, userfaultfd",
            ),
            ("Which thread held the lock",),
        ),
        "postcopy-page-wait": Advice(
            (
                'Ask: `{"execute":"query-migrate"}`: postcopy-active, postcopy-paused or postcopy-recover; `virsh domjobinfo NAME`',
                "Keep BOTH processes alive: neither has the whole VM",
                "Recover: QMP `migrate-pause` on the source if it hangs, then `migrate-recover` here and `migrate … resume=true` there (`virsh migrate --postcopy-resume`)",
            ),
            ("The guest's memory, for good: killing either side loses the VM",),
        ),
        "host-writeback-throttled": Advice(
            (
                "See it: `grep -E 'Dirty|Writeback:' /proc/meminfo`, `sysctl vm.dirty_ratio vm.dirty_bytes vm.dirty_background_ratio`",
                "Stop the other writer (a backup, a copy): `ionice`, SIGSTOP on that writer, not on the VM",
                "No kill: it recovers when the pages are written",
            ),
            ("Whose dirty pages filled the limit",),
        ),
        "host-dm-suspended": Advice(
            (
                "See it: `dmsetup info -c -o name,suspended`, `grep . /sys/block/dm-*/dm/suspended`",
                "Resume it: `dmsetup resume DEVICE`, after a look at whether the table is the right one (`dmsetup table`)",
                "The requests go on by themselves",
            ),
            ("Which command suspended it",),
        ),
        "cgroup-io-limited": Advice(
            (
                "See the limit: `cat /proc/PID/cgroup`, then `io.max` or `blkio.throttle.*_device` of that group and of each above it; `MAJ:MIN` is the disk's, as `lsblk` shows it",
                "Lift the limit: `systemctl set-property --runtime UNIT IOWriteBandwidthMax=`, `virsh blkiotune`, or `echo 'MAJ:MIN wbps=max' > io.max`",
                "None is needed: the requests that waited end in order",
            ),
            ("How long the requests had waited: the kernel's queue of them goes with the process",),
        ),
        "host-block-wait": Advice(
            (
                "See which device holds requests: `grep . /sys/block/*/inflight`, `iostat -x 2 3`, `cat /sys/kernel/debug/block/*/hctx*/busy | head`",
                "Bring the device or path back; multipath that queues for ever: `dmsetup message MAP 0 fail_if_no_path`",
                "If the device is dead for good, error handling ends the requests; the guest then sees errors",
            ),
            ("Which request the device holds: blk-mq's debugfs tells it only while it waits",),
        ),
    }
)
