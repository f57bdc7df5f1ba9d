"""Threads: what /proc said of each at both looks, and the frames that gdb found."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache, partial

from autopsy.bundle import layout, proc_stat, records, restarts, syscalls
from autopsy.bundle.sections import Section
from autopsy.dataclass import dataclass
from autopsy.facts.cite import Cite, Fact, Known, Unknown
from autopsy.facts.evidence import Evidence, missing, section_map, text
from autopsy.facts.evidence import records as decode
from autopsy.facts.model.facts import Movement, Role, Syscall, ThreadFact, ThreadSnapshot

LOOKS = (layout.WITNESS, layout.PROC_STACKS, layout.SECOND_EXPOSURE)  # steps that read all threads, in their order
KVM_RUN = 0xAE80
IOCTL = 16
STOP_SIGNAL = 19

# A line of /proc/TID/stack looks like: [<0>] percpu_rwsem_wait+0x11a/0x140 [ext4].
STACK_LINE = re.compile(r"\[<[0-9a-fx]*>\]\s+([A-Za-z0-9_.]+)")

KERNEL_NAMES = ("kvm-nx-lpage-re", "kvm-pit", "iou-wrk-", "iou-sqp-", "vhost-")
MIGRATION_NAMES = (
    *(
        "live_migration",
        "multifd",
        "mig/",
        "migration",
        "postcopy",
        "bg_snapshot",
        "dump_thread",
        "return path",
        "COLO",
    ),
)


@dataclass(frozen=True, slots=True)
class ThreadReading:
    """One thread in one reading of /proc, with the counters that grow."""

    comm: str
    snapshot: ThreadSnapshot
    cpu_ns: int | None
    waited_ns: int | None
    voluntary: int | None


@dataclass(frozen=True, slots=True)
class TasksReading:
    """Every thread that one step read, and when it did."""

    step: str
    at_ns: int
    looks: Mapping[int, ThreadReading]
    listed: frozenset[int] = frozenset()


def gather_threads(evidence: Evidence, roles: Mapping[int, Role]) -> Fact[tuple[ThreadFact, ...]]:
    """Return every thread; `roles` holds what QMP said of some of them, by tid."""
    first, again = _first_and_last(evidence)
    stacks = decode(evidence, layout.GDB_THREADS, layout.THREADS, tuple[records.ThreadStack, ...])
    by_tid = {stack.tid: stack for stack in stacks.value} if isinstance(stacks, Known) else {}
    tids = sorted({*first.looks, *again.looks, *by_tid})
    if not tids:
        return missing(evidence, layout.WITNESS, layout.TASKS)
    pid = evidence.manifest.target.pid
    threads = []
    for tid in tids:
        before, after, stack = first.looks.get(tid), again.looks.get(tid), by_tid.get(tid)
        comm = (before.comm if before else "") or (stack.comm if stack else "") or (after.comm if after else "")
        frames = tuple(stack.frames) if stack else ()
        seen = before or after
        call = seen.snapshot.syscall if seen else Syscall(None, "")
        threads.append(
            ThreadFact(
                tid=tid,
                comm=comm,
                role=roles.get(tid) or role(is_main=tid == pid, comm=comm, call=call, frames=frames),
                first=_snapshot(evidence, first, before),
                again=_snapshot(evidence, again, after),
                frames=_frames(stacks, stack),
                movement=_movement(evidence, first, again, tid),
                ended=before is not None and bool(again.listed) and tid not in again.listed,
            )
        )
    return Known(tuple(threads), Cite(layout.evidence(layout.WITNESS, layout.TASKS)))


def _first_and_last(evidence: Evidence) -> tuple[TasksReading, TasksReading]:
    """Return the first look at the threads, and the last: what lies between the two is not even read."""
    read = cache(partial(reading, evidence))
    first = next((look for step in LOOKS if (look := read(step)).looks), read(LOOKS[0]))
    last = next((look for step in reversed(LOOKS) if (look := read(step)).looks), first)
    return first, TasksReading(LOOKS[-1], 0, {}) if last is first else last


# A vCPU's thread begins in a static function; a stripped QEMU knows it by what that calls.
OF_A_VCPU = frozenset(
    {"qemu_kvm_cpu_thread_fn", "kvm_vcpu_thread_fn", "kvm_cpu_exec", "mttcg_cpu_thread_fn", "tcg_cpu_exec", "cpu_exec"}
)
# Threads that do a migration's work: names of them need debug-threads=on, too.
OF_A_MIGRATION = frozenset(
    {"migration_thread", "bg_migration_thread", "source_return_path_thread", "multifd_send_thread"}
    | {"multifd_recv_thread", "postcopy_ram_listen_thread", "postcopy_ram_fault_thread", "postcopy_preempt_thread"}
    | {"colo_process_incoming_thread"}
)


def role(*, is_main: bool, comm: str, call: Syscall, frames: tuple[records.Frame, ...]) -> Role:
    """Tell what a thread is for; names need debug-threads=on, so the system call and the frames speak too."""
    functions = {frame.function for frame in frames}
    tests: tuple[tuple[bool, Role], ...] = (
        (is_main, Role.MAIN),
        (comm.startswith(KERNEL_NAMES), Role.KERNEL),
        (comm.startswith("CPU ") or (call.number == IOCTL and KVM_RUN in call.arguments[1:2]), Role.VCPU),
        (bool(functions & OF_A_VCPU), Role.VCPU),
        (comm.startswith("IO mon_iothread"), Role.MONITOR),
        (comm.startswith("IO ") or "iothread_run" in functions, Role.IOTHREAD),
        (comm == "worker" or comm.startswith("pool-") or "worker_thread" in functions, Role.WORKER),
        (comm == "call_rcu" or "call_rcu_thread" in functions, Role.CALL_RCU),
        (comm.startswith(MIGRATION_NAMES) or bool(functions & OF_A_MIGRATION), Role.MIGRATION),
    )
    return next((role for holds, role in tests if holds), Role.OTHER)


def reading(evidence: Evidence, step: str) -> TasksReading:
    """Read one step's tasks.txt."""
    path = layout.evidence(step, layout.TASKS)
    files = section_map(evidence, step, layout.TASKS)
    tids = {int(part) for name in files if name.startswith("task/") and (part := name.split("/")[1]).isdecimal()}
    looks = {tid: look for tid in sorted(tids) if (look := _look(path, tid, files)) is not None}
    began = files.get("clock/begin")
    at = (int_of(text(began).strip()) if began else None) or next(
        (record.start_ns for record in evidence.manifest.steps if record.name == step), 0
    )
    # One that is cut short lists none: what is missing from it may have been there.
    return TasksReading(step, at, looks, frozenset(tids if "clock/end" in files else ()))


def _look(path: str, tid: int, files: Mapping[str, Section]) -> ThreadReading | None:
    def part(name: str) -> str:
        section = files.get(f"task/{tid}/{name}")
        return "" if section is None or section.error else text(section)

    status, comm = part("status"), part("comm").rstrip("\n")
    state = field(status, "State")[:1]
    if not (state and comm):  # a second source for both, which costs as much as all others together
        stat = proc_stat.parse(part("stat").encode())
        state, comm = state or stat.state, comm or stat.comm
    if not state:
        return None
    stack = files.get(f"task/{tid}/stack")
    anchor = next(section for name in ("status", "stat") if (section := files.get(f"task/{tid}/{name}")))
    pending = int_of(field(status, "SigPnd"), 16) or 0
    schedule = part("schedstat").split()
    wchan, kernel_stack = part("wchan").strip().strip("0"), tuple(STACK_LINE.findall(part("stack")))
    snapshot = ThreadSnapshot(
        state=state,
        wchan=wchan,
        syscall=syscall(part("syscall"), (wchan, *kernel_stack)),
        kernel_stack=kernel_stack,
        tracer=int_of(field(status, "TracerPid")) or 0,
        dumping=field(status, "CoreDumping") == "1",
        stop_pending=bool(pending >> (STOP_SIGNAL - 1) & 1),
        cite=Cite(path, anchor.line, f"task {tid}: State {state}"),
        stack_cite=Cite(path, stack.line if stack else anchor.line, f"task {tid}: kernel stack"),
    )
    return ThreadReading(
        comm=comm,
        snapshot=snapshot,
        cpu_ns=int_of(schedule[0]) if schedule else None,
        waited_ns=int_of(schedule[1]) if len(schedule) > 1 else None,
        voluntary=int_of(field(status, "voluntary_ctxt_switches")),
    )


def field(status: str, name: str) -> str:
    """Return one line's value of /proc/.../status, empty where there is none; most of its sixty lines nobody needs."""
    place = 0 if status.startswith(f"{name}:") else status.find(f"\n{name}:") + 1
    if not place and not status.startswith(f"{name}:"):
        return ""
    end = status.find("\n", place)
    line = status[place:] if end < 0 else status[place:end]
    return line.partition(":")[2].strip()


def fields(status: str) -> dict[str, str]:
    """Return /proc/.../status as a mapping."""
    pairs = (line.partition(":") for line in status.splitlines())
    return {name.strip(): value.strip() for name, colon, value in pairs if colon}


def int_of(word: str, base: int = 10) -> int | None:
    """Return the number a word holds, or None where it holds none."""
    try:
        return int(word, base)
    except ValueError:
        return None


def syscall(line: str, places: Iterable[str] = ()) -> Syscall:
    """Read /proc/TID/syscall: `running`, `-1 SP PC`, or `NUMBER ARG… SP PC`.

    `places` are the kernel's functions that the thread sleeps in: they tell which call goes on as restart_syscall.
    """
    words = line.split()
    number = int_of(words[0]) if words else None
    if number is None or number < 0:
        # -1: it sleeps outside of any system call, as in a page fault.
        return Syscall(None, words[0] if words and number is None else "")
    arguments = tuple(value for word in words[1:7] if (value := int_of(word, 16)) is not None)
    name = restarts.interrupted(places) if number == restarts.X86_64 else ""
    return Syscall(number, name or syscalls.NAMES.get(number, str(number)), arguments, restarted=bool(name))


def _snapshot(evidence: Evidence, source: TasksReading, look: ThreadReading | None) -> Fact[ThreadSnapshot]:
    if look is not None:
        return Known(look.snapshot, look.snapshot.cite)
    if source.looks:
        return Unknown(
            layout.evidence(source.step, layout.TASKS), "the thread was not there then, or could not be read"
        )
    return missing(evidence, source.step, layout.TASKS)


def _frames(
    stacks: Fact[tuple[records.ThreadStack, ...]], stack: records.ThreadStack | None
) -> Fact[tuple[records.Frame, ...]]:
    path = layout.evidence(layout.GDB_THREADS, layout.BACKTRACE)
    if isinstance(stacks, Unknown):
        return stacks
    if stack is None or not stack.frames:
        return Unknown(path, (stack.cut_short if stack else "") or "gdb gave no frames for this thread")
    return Known(stack.frames, Cite(path, stack.line, f"thread {stack.tid} ({stack.comm})"))


def _grown(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else max(0, after - before)


def _movement(evidence: Evidence, first: TasksReading, again: TasksReading, tid: int) -> Fact[Movement]:
    before, after = first.looks.get(tid), again.looks.get(tid)
    if before is None or after is None:
        return missing(evidence, again.step if before else first.step, layout.TASKS)
    path = layout.evidence(again.step, layout.TASKS)
    if before.cpu_ns is None or after.cpu_ns is None:
        return Unknown(path, "no schedstat")
    seconds = max(0.0, (again.at_ns - first.at_ns) / 1e9)
    return Known(
        Movement(
            seconds=seconds,
            cpu_ns=max(0, after.cpu_ns - before.cpu_ns),
            waited_ns=_waited(before, after, max(0, round(seconds * 1e9) - (after.cpu_ns - before.cpu_ns))),
            voluntary_switches=_grown(before.voluntary, after.voluntary),
        ),
        after.snapshot.cite,
    )


def _waited(before: ThreadReading, after: ThreadReading, most: int) -> int:
    """Return for how long a thread was ready to run and did not, in ns, at `most` what it did not run.

    The kernel counts a wait when it ends, with all that lay before the first look: of one that goes on it says nothing.
    """
    never_slept = _grown(before.voluntary, after.voluntary) == 0
    if never_slept and before.snapshot.state == after.snapshot.state == "R":
        return most
    return min(most, max(0, (after.waited_ns or 0) - (before.waited_ns or 0)))
