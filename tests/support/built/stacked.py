"""Captures made of stacks: what a VM would have shown whose threads stood so at both looks, with the locks' owners."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autopsy.bundle import records
from autopsy.bundle.syscalls import NAMES
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.function_names import FUTEXES, JOINS, LOCKS, POLL_CALLS, system_call
from autopsy.diagnose.verdict import diagnose
from autopsy.examine.threads.main_loop import command_in, nested_under
from autopsy.facts.gather import gather_facts
from support.built import evidence as e
from support.built.pastes import IDLE_MAIN, STARTED

BQL = "the BQL"
RUNNING = ("running", "R")
NUMBERS = {name: number for number, name in NAMES.items()}
IN_FUTEX = LOCKS | FUTEXES | {"pthread_cond_wait", "___pthread_cond_wait", "pthread_join"}


@dataclass(frozen=True, slots=True)
class Stood:
    """A thread as both looks saw it. `wants` and `owns` are locks by any names; `joins` is another thread's name."""

    name: str
    functions: Sequence[str]
    wants: str = ""
    owns: tuple[str, ...] = ()
    joins: str = ""
    runs: bool = False
    moved: bool = False


MAIN_RESTS = Stood("main", IDLE_MAIN)
VCPU_RUNS = Stood("CPU 0/KVM", ("ioctl", "kvm_vcpu_ioctl", "kvm_cpu_exec", "kvm_vcpu_thread_fn", *STARTED))


def capture(*threads: Stood, answers: bool = False, parked: Sequence[Sequence[str]] = ()) -> e.Case:
    """Return the capture; the main thread is called `main`."""
    case = e.Case()
    tids = {stood.name: e.PID if stood.name == "main" else e.PID + 10 + place for place, stood in enumerate(threads)}
    owners = {lock: tids[stood.name] for stood in threads for lock in stood.owns}
    main = next(stood for stood in threads if stood.name == "main")
    if tuple(main.functions) != IDLE_MAIN and main.wants != BQL:
        owners.setdefault(BQL, e.PID)  # its loop lets go of it only where it rests
    for stood in threads:
        _thread(case, stood, tids, owners)
    waiting = {stood.wants: [] for stood in threads if stood.wants}
    for stood in threads:
        if stood.wants:
            waiting[stood.wants].append(tids[stood.name])
    case.locks = records.LockGraph(
        mutexes=tuple(
            records.Mutex(
                address=_address(lock),
                owner=owners.get(lock, 0),
                owner_comm="",
                kind="normal",
                count=0,
                waiters=tuple(waiters),
                place="heap",
                is_bql=lock == BQL,
            )
            for lock, waiters in waiting.items()
        ),
        others=(),
        cycles=(),
        bql_address=_address(BQL),
        bql_owner=owners.get(BQL, 0),
        bql_how_found="symbol",
    )
    case.main_loop = _main_loop(main)
    for functions in parked:
        case.parked(tuple(functions))
    if answers:
        case.monitor()
        case.disks(e.disk("d0"))
    else:
        case.dead_monitor()
    return case


def said_of(*threads: Stood, answers: bool = False, parked: Sequence[Sequence[str]] = ()) -> Diagnosis:
    """Return the diagnosis of such a capture."""
    return diagnose(gather_facts(capture(*threads, answers=answers, parked=parked).bundle()))


def _address(lock: str) -> int:
    return 0x55D000001000 + sum(lock.encode()) * 0x40


def _thread(case: e.Case, stood: Stood, tids: dict[str, int], owners: dict[str, int]) -> None:
    tid, names = tids[stood.name], tuple(stood.functions)
    call = next((found for name in names[:4] if (found := system_call(name))), "")
    stack, syscall = e.IDLE_STACK, "202 0x55d0ff000000 0x189 0x0 0x0 0x0 0xffffffff 0x7f0000000000 0x7f0000000000"
    if stood.wants:
        address, owner = _address(stood.wants), owners.get(stood.wants, 0)
        syscall = f"202 {address:#x} 0x80 0x2 0x0 0x0 0x0 0x7f0000000000 0x7f0000000000"
        wait = records.FutexWait(tid=tid, address=address, operation=0x80, value=2, lock=2, owner=owner, users=1)
        case.futexes.append(wait)
    elif JOINS.intersection(names):
        syscall = (
            f"202 0x7f0000000910 0x109 {tids.get(stood.joins, 1):#x} 0x0 0x0 0xffffffff 0x7f0000000000 0x7f0000000000"
        )
    elif call == "ioctl" and "kvm_vcpu_ioctl" in names:
        syscall, stack = e.KVM_RUN, ("kvm_vcpu_block", "kvm_vcpu_halt", "vcpu_run")
    elif call in POLL_CALLS:
        syscall, stack = e.POLL, e.POLL_STACK
    elif call and not IN_FUTEX.intersection(names[:2]):
        syscall = f"{NUMBERS[call]} 0x9 0x7f0000000000 0x1000 0x0 0x0 0x0 0x7f0000000000 0x7f0000000000"
        stack = ("hrtimer_nanosleep",) if "sleep" in call else ("unix_stream_read_generic",)
    state = "R" if stood.runs else "S"
    case.thread(
        tid,
        "qemu-system-x86" if stood.name == "main" else stood.name,
        state=state,
        syscall="running" if stood.runs else syscall,
        stack=() if stood.runs else stack,
        frames=names,
        cpu_ns=int(4.9 * e.SECOND) if stood.runs else 0,
        switches=50 if stood.moved else 3 if stood.runs else 0,
    )


def _main_loop(main: Stood) -> records.MainLoop:
    frames = tuple(map(e.frame, main.functions))
    under = nested_under(frames)
    state = (
        "waits for a mutex"
        if main.wants
        else "running"
        if main.runs
        else "nested poll"
        if under
        else "idle"
        if tuple(main.functions) == IDLE_MAIN
        else "blocked in a system call"
    )
    return records.MainLoop(
        tid=e.PID,
        state=state,
        under=under or "futex" * (state == "blocked in a system call"),
        command=command_in(frames),
    )
