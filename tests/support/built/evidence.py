"""Builds bundles in memory from documented fields, for wedges that cannot be met on a live QEMU here.

Nothing in it was captured: every file is what the collectors would have written, by the words of records.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import msgspec

from autopsy.bundle import layout as names
from autopsy.bundle import manifest as schema
from autopsy.bundle import records
from autopsy.bundle.heap import records as heap_records
from autopsy.bundle.sections import Section, render

PID = 4242
SECOND = 1_000_000_000
MOST_MS = 1000.0  # for an answer
Since = Literal["stuck", "moved", "new", "gone", "unknown"]

YIELD = ("qemu_coroutine_switch", "qemu_coroutine_yield")
QUEUE = ("qemu_coroutine_switch", "qemu_co_queue_wait_impl")
MUTEX = ("qemu_coroutine_switch", "qemu_coroutine_yield", "qemu_co_mutex_lock")

# What stripped builds show: exported names only, statics as "".
THROTTLED = (*QUEUE, "throttle_group_co_io_limits_intercept", "", "", "bdrv_co_preadv_part", "", "coroutine_trampoline")
THROTTLED_LEGACY = (*QUEUE, "throttle_group_co_io_limits_intercept", "", "blk_co_pwritev", "", "coroutine_trampoline")
NBD = (*YIELD, "qio_channel_yield", "", "nbd_receive_reply", "", "", "", "bdrv_co_pwritev_part", "coroutine_trampoline")
WORKERS = (*YIELD, "thread_pool_submit_co", "", "", "bdrv_co_pwritev_part", "blk_co_pwritev", "coroutine_trampoline")
NATIVE = (*YIELD, "laio_co_submit", "", "", "bdrv_co_pwritev_part", "blk_co_pwritev", "coroutine_trampoline")
URING = (*YIELD, "luring_co_submit", "", "", "bdrv_co_pwritev_part", "blk_co_pwritev", "coroutine_trampoline")

POLL = "271 0x55d000000000 0x7 0x0 0x0 0x8 0x0 0x7ffc00000000 0x7f0000000000"
KVM_RUN = "16 0xe 0xae80 0x0 0x0 0x0 0x0 0x7f1000000000 0x7f0000000000"
IDLE_WORKER = "202 0x55d000100000 0x189 0x0 0x7f2000000000 0x0 0xffffffff 0x7f2000000000 0x7f0000000000"
IDLE_STACK = ("futex_wait_queue", "__futex_wait", "futex_wait", "do_futex", "__x64_sys_futex", "do_syscall_64")
POLL_STACK = ("do_sys_poll", "__x64_sys_ppoll", "do_syscall_64")


@dataclass(frozen=True, slots=True)
class Fake:
    """A bundle in memory: what `Evidence` asks of one."""

    manifest: schema.Manifest
    files: dict[str, bytes]

    def read(self, path: str) -> bytes:
        return self.files.get(path, b"")

    def names(self) -> tuple[str, ...]:
        return tuple(self.files)

    def without(self, path: str) -> Fake:
        """Return the same bundle with one file cut off."""
        return Fake(self.manifest, {name: data for name, data in self.files.items() if name != path})


@dataclass(slots=True)
class Task:
    """A thread at one or two looks."""

    tid: int
    comm: str
    state: str = "S"
    wchan: str = ""
    syscall: str = ""
    stack: tuple[str, ...] = ()
    frames: tuple[str, ...] = ()
    tracer: int = 0
    cpu_ns: int = 0
    switches: int = 0
    later: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Case:
    """A capture under construction; `bundle()` gives it as an analyzer sees it."""

    version: str = "7.2.22"
    gap: float = 5.0
    two: bool = True
    tasks: list[Task] = field(default_factory=list)
    coroutines: list[records.Coroutine] = field(default_factory=list)
    awake: dict[int, records.Coroutine] = field(default_factory=dict)
    exchanges: dict[str, list[records.QmpExchange]] = field(default_factory=dict)
    descriptors: dict[int, str] = field(default_factory=dict)
    info: dict[int, str] = field(default_factory=dict)
    futexes: list[records.FutexWait] = field(default_factory=list)
    polls: list[records.PollSet] = field(default_factory=list)
    locks: records.LockGraph | None = None
    main_loop: records.MainLoop | None = None
    heap: heap_records.HeapSnapshot | None = None
    heap_again: heap_records.HeapSnapshot | None = None
    ends: list[records.SocketEnd] = field(default_factory=list)
    peer_sections: list[Section] = field(default_factory=list)
    host: list[Section] = field(default_factory=list)
    mountinfo: str = "30 1 254:1 / / rw - ext4 /dev/vda1 rw\n"
    command_line: tuple[str, ...] = ()
    log: str = ""
    vm_log: str = ""
    ss: str = "\n"
    rings: list[records.Rings] = field(default_factory=list)
    outcomes: dict[str, tuple[str, str]] = field(default_factory=dict)
    monitor_address: str = ""

    def thread(self, tid: int, comm: str, **more: Any) -> Task:
        task = Task(tid, comm, **more)
        self.tasks.append(task)
        return task

    def idle_threads(self, *, vcpus: int = 1, iothreads: int = 0, cpu_share: float = 0.01) -> None:
        """Add the threads that every QEMU has, at rest."""
        self.thread(PID, "qemu-system-x86", syscall=POLL, stack=POLL_STACK, cpu_ns=10_000_000, switches=50)
        self.thread(
            PID + 1, "call_rcu", syscall="202 0x55d000200000 0x0 0xffffffff 0x0 0x0 0x0 0x0 0x0", stack=IDLE_STACK
        )
        for number in range(vcpus):
            self.thread(
                PID + 2 + number,
                f"CPU {number}/KVM",
                syscall=KVM_RUN,
                stack=("kvm_vcpu_block", "kvm_vcpu_halt", "vcpu_run"),
                cpu_ns=int(self.gap * SECOND * cpu_share),
                switches=100,
            )
        for number in range(iothreads):
            self.thread(PID + 50 + number, f"IO iothread{number}", syscall=POLL, stack=POLL_STACK)
        self.thread(PID + 90, "worker", syscall=IDLE_WORKER, stack=IDLE_STACK)

    def parked(self, functions: tuple[str, ...], number: int = 1, since: Since = "stuck", **more: Any) -> None:
        """Add coroutines that are parked with these frames, innermost first."""
        for _ in range(number):
            address = 0x7F3000000000 + 0x1000 * len(self.coroutines)
            frames = tuple(frame(name) for name in functions)
            self.coroutines.append(
                records.Coroutine(
                    address=address,
                    stack=0x7F4000000000,
                    stack_size=0x101000,
                    state="parked",
                    pc=0x7F0000001000,
                    sp=0x7F4000000800,
                    entry=0x55D000001000,
                    entry_argument=0,
                    caller=0,
                    context=0x55D001000000,
                    locks_held=0,
                    frames=frames,
                    since_first=since if self.two else "unknown",
                    **more,
                )
            )

    def awake_at_first(self, found: Literal["running", "parked"]) -> None:
        """Have the first look meet the last coroutine awake: no frame leads from where it slept before."""
        now = self.coroutines[-1]
        self.awake[now.address] = msgspec.structs.replace(now, state=found, frames=now.frames[:1], same_request=False)

    def asked(
        self, question: str, answer: Any, *, step: str = names.QUERY_STATUS, outcome: Any = "answered", **more: Any
    ) -> None:
        self.exchanges.setdefault(step, []).append(
            records.QmpExchange(
                question=question,
                outcome=outcome,
                asked_ns=11 * SECOND,
                **{
                    "ms": MOST_MS if outcome in {"no answer", "silent"} else 1.0,
                    "deadline_ms": MOST_MS,
                    "answer": answer,
                    **more,
                },
            )
        )

    def monitor(self, status: str = "running") -> None:
        """Add a monitor that greets and answers query-status in both snapshots."""
        self.asked("(greeting)", {"QMP": {}}, outcome="greeted")
        for step in (names.QUERY_STATUS, names.SECOND_EXPOSURE) if self.two else (names.QUERY_STATUS,):
            self.asked("query-status", {"status": status, "running": status == "running"}, step=step)

    def dead_monitor(self) -> None:
        """Add a monitor that greets and answers nothing more."""
        self.asked("(greeting)", {}, outcome="greeted")
        self.asked("qmp_capabilities", None, outcome="no answer")

    def disks(self, *disks: dict[str, Any]) -> None:
        """Add answers to query-block and query-blockstats; see `disk`."""
        self.asked("query-block", [each["block"] for each in disks], step=names.QUERY_BLOCK)
        self.asked("query-blockstats", [stats(each, each["before"]) for each in disks])
        if self.two:
            self.asked("query-blockstats", [stats(each, each["after"]) for each in disks], step=names.SECOND_EXPOSURE)

    def bundle(self) -> Fake:
        """Return the capture as files."""
        files: dict[str, bytes] = {}

        def put(step: str, file: str, data: bytes) -> None:
            files[names.evidence(step, file)] = data

        put(names.WITNESS, names.TASKS, render(self._sections(later=False)))
        if self.two:
            put(names.SECOND_EXPOSURE, names.TASKS, render(self._sections(later=True)))
        put(names.WITNESS, names.FUTEXES, msgspec.json.encode(self.futexes))
        put(names.WITNESS, names.POLLS, msgspec.json.encode(self.polls))
        put(names.WITNESS, names.CMDLINE, "\0".join(("qemu-system-x86_64", *self.command_line, "")).encode())
        links = [Section(f"fd/{fd}", target.encode()) for fd, target in self.descriptors.items()]
        links += [Section(f"fdinfo/{fd}", text.encode()) for fd, text in self.info.items()]
        links.append(Section("mountinfo", self.mountinfo.encode()))
        put(names.PROC_FDS, names.FDS, render(links))
        put(names.PROC_FDS, names.SOCKET_ENDS, msgspec.json.encode(self.ends))
        put(names.PROC_FDS, names.SOCKETS, render([Section("ss", self.ss.encode()), *self.peer_sections]))
        for step, exchanges in self.exchanges.items():
            put(step, names.QMP, b"".join(msgspec.json.encode(each) + b"\n" for each in exchanges))
        if names.QUERY_BLOCK in self.exchanges:  # it was let through
            put(names.QUERY_BLOCK, names.GUARD, msgspec.json.encode(records.GuardLook(moved=(), main=())))
        put(names.GDB_THREADS, names.THREADS, msgspec.json.encode([stack(task) for task in self.tasks]))
        met = [self.awake.get(each.address, each) for each in self.coroutines]
        first = [msgspec.structs.replace(each, since_first="unknown") for each in met]
        put(names.GDB_THREADS, names.COROUTINES, msgspec.json.encode(first))
        if self.two:
            later = [each for each in self.coroutines if each.since_first != "gone"]
            put(names.SECOND_EXPOSURE, names.COROUTINES, msgspec.json.encode(later))
        if self.locks is not None:
            put(names.GDB_THREADS, names.LOCKS, msgspec.json.encode(self.locks))
        if self.main_loop is not None:
            put(names.GDB_THREADS, names.MAIN_LOOP, msgspec.json.encode(self.main_loop))
        walk = heap_records.Heap(first=self.heap, second=self.heap_again, why="" if self.heap else "no DWARF")
        put(names.GDB_THREADS, names.HEAP, msgspec.json.encode(walk))
        put(names.GDB_THREADS, names.BACKTRACE, b"as gdb printed it\n" * (len(self.tasks) + 1))
        if self.host:
            put(names.HOST, names.HOST_FILES, render(self.host))
        put(names.HOST, names.DMESG, self.log.encode())
        put(names.HOST, names.VM_LOG, self.vm_log.encode())
        for step, rings in zip((names.PROC_AIO, names.SECOND_EXPOSURE), self.rings, strict=False):
            put(step, names.RINGS, msgspec.json.encode(rings))
        return Fake(self._manifest(), files)

    def _sections(self, *, later: bool) -> list[Section]:
        found: list[Section] = []
        for each in self.tasks:
            task = replace(each, **each.later) if later else each
            base = 50_000_000
            ran = base + (each.cpu_ns if later else 0)
            switched = 1000 + (each.switches if later else 0)
            status = (
                f"Name:\t{task.comm}\nState:\t{task.state} (x)\nTracerPid:\t{task.tracer}\nSigPnd:\t0000000000000000\n"
                f"voluntary_ctxt_switches:\t{switched}\nnonvoluntary_ctxt_switches:\t5\n"
            )
            lines = "".join(f"[<0>] {name}+0x1/0x2\n" for name in task.stack)
            parts = {
                "comm": f"{task.comm}\n",
                "stat": f"{task.tid} ({task.comm}) {task.state} 1 1",
                "status": status,
                "wchan": task.wchan or (task.stack[0] if task.stack else "0"),
                "syscall": f"{task.syscall}\n",
                "stack": lines,
                "schedstat": f"{ran} 0 100\n",
            }
            found += [Section(f"task/{task.tid}/{name}", text.encode()) for name, text in parts.items()]
        return [*found, Section("clock/end", b"11000000000")]

    def _manifest(self) -> schema.Manifest:
        clocks = schema.Clocks(utc="2026-06-11T15:21:00.000000Z", zone="+0300 EEST", monotonic_ns=10 * SECOND)
        steps = []
        for place, name in enumerate(names.STEPS):
            start = 10 * SECOND + place * SECOND // 100
            if name == names.SECOND_EXPOSURE:
                start = 10 * SECOND + int(self.gap * SECOND)
            outcome, why = self.outcomes.get(name, ("Collected", ""))
            if name == names.SECOND_EXPOSURE and not self.two:
                outcome, why = "Skipped", "the budget was used up"
            steps.append(
                schema.StepRecord(
                    name=name,
                    impact="none",
                    outcome=outcome,
                    start_ns=start,
                    end_ns=start + 1,
                    why=why,
                )
            )
        return schema.Manifest(
            schema=1,
            autopsy="0.1.0",
            options=(),
            began=clocks,
            ended=clocks,
            host=schema.Host(
                name="pve",
                kernel="6.8.0",
                architecture="x86_64",
                distribution="Debian 12",
                page_size=4096,
                cpus=16,
                boot_id="0",
            ),
            target=schema.TargetRecord(
                pid=PID,
                name="devvm",
                manager="process",
                start_ticks=1,
                exe="/usr/bin/qemu-system-x86_64",
                exe_deleted=False,
                build_id="ab",
                qemu_version=self.version,
                monitors=(schema.MonitorSocket(protocol="qmp", transport="fd", address=self.monitor_address),)
                if self.monitor_address
                else (),
            ),
            steps=tuple(steps),
        )


def frame(name: str) -> records.Frame:
    """Return a frame; `~name` is a nameless one near an exported name, `name@file` one in another module."""
    if name.startswith("~"):
        return records.Frame(pc=0x55D000001000, near=name[1:], module="/usr/bin/qemu-system-x86_64")
    function, _, module = name.partition("@")
    return records.Frame(pc=0x55D000001000, function=function, module=module or "/usr/bin/qemu-system-x86_64")


def stack(task: Task) -> records.ThreadStack:
    return records.ThreadStack(tid=task.tid, comm=task.comm, frames=tuple(frame(name) for name in task.frames), line=1)


def disk(
    backend: str,
    qdev: str = "",
    *,
    before: int = 100,
    after: int = 100,
    driver: str = "raw",
    file: str = "disk.raw",
    io_status: str = "ok",
    node: str = "",
    idle_ns: int | None = None,
    **limits: Any,
) -> dict[str, Any]:
    """Return one disk with its completed reads before and after, as QMP tells them."""
    node = node or f"#{backend or qdev}"
    inserted = {
        "node-name": node,
        "drv": driver,
        "file": file,
        "image": {"filename": file},
        "bps": 0,
        "iops": 0,
        **limits,
    }
    block = {"device": backend, "qdev": qdev, "io-status": io_status, "type": "unknown", "inserted": inserted}
    return {
        "block": block,
        "before": before,
        "after": after,
        "backend": backend,
        "qdev": qdev,
        "node": node,
        "idle": idle_ns,
    }


def stats(each: dict[str, Any], completed: int) -> dict[str, Any]:
    counters = {"rd_operations": completed, "wr_operations": completed, "flush_operations": 0, "unmap_operations": 0}
    if each["idle"] is not None:
        counters["idle_time_ns"] = each["idle"]
    return {"device": each["backend"], "qdev": each["qdev"], "node-name": each["node"], "stats": counters}
