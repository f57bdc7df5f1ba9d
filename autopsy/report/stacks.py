"""Groups threads and coroutines that stand alike, those that are stuck first."""

from __future__ import annotations

from collections.abc import Iterable

from autopsy.bundle.records import Frame
from autopsy.dataclass import dataclass
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.facts.cite import Cite, Known
from autopsy.facts.model.facts import CoroutineFact, Facts, Movement, Role, ThreadFact
from autopsy.facts.model.yield_points import DISK_PARKS
from autopsy.report.units import count, duration, milliseconds

MOST_FRAMES = 48  # of one stack
FULL_GROUPS = 150  # stacks that are shown whole; of the rest, the innermost frames
FEW_FRAMES = 6
MOST_NAMES = 24
ROLES = {
    Role.MAIN: "main thread",
    Role.VCPU: "vCPU",
    Role.IOTHREAD: "iothread",
    Role.WORKER: "worker",
    Role.MONITOR: "monitor thread",
    Role.CALL_RCU: "RCU thread",
    Role.MIGRATION: "migration thread",
    Role.KERNEL: "kernel worker",
    Role.OTHER: "thread",
}
STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "in an uninterruptible sleep",
    "T": "stopped",
    "t": "stopped by a tracer",
    "Z": "dead",
    "X": "dead",
    "I": "idle in the kernel",
}


@dataclass(frozen=True, slots=True)
class FrameLine:
    """One frame for eyes. `place` is source:line or module+offset; `hint` says what a nameless function lies near."""

    number: int
    function: str
    place: str
    hint: str = ""
    inlined: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Threads or coroutines with one and the same stack. `moved` says what became of them between the snapshots."""

    title: str
    stuck: bool
    state: str
    moved: str
    top: str
    members: tuple[str, ...]
    more_members: int
    kernel: tuple[str, ...]
    frames: tuple[FrameLine, ...]
    more_frames: int
    why_none: str
    cites: tuple[Cite, ...]


def thread_groups(facts: Facts, diagnosis: Diagnosis) -> tuple[Group, ...]:
    """Return the threads, identical ones together."""
    if not isinstance(facts.threads, Known):
        return ()
    waiting = _waiting(diagnosis)
    alike: dict[object, list[ThreadFact]] = {}
    for thread in facts.threads.value:
        look = thread.first.value if isinstance(thread.first, Known) else None
        frames = thread.frames.value if isinstance(thread.frames, Known) else ()
        key = (
            thread.tid in waiting,
            thread.role,
            look.state if look else "",
            look.kernel_stack if look else (),
            tuple((frame.function, 0 if frame.function else frame.pc) for frame in frames),
        )
        alike.setdefault(key, []).append(thread)
    ordered = sorted(alike.values(), key=lambda group: _thread_rank(group, waiting))
    return tuple(
        _thread_group(group, stuck=group[0].tid in waiting, whole=index < FULL_GROUPS)
        for index, group in enumerate(ordered)
    )


def coroutine_groups(facts: Facts, diagnosis: Diagnosis) -> tuple[Group, ...]:
    """Return the parked coroutines, identical ones together; requests of disks come first."""
    if not isinstance(facts.coroutines, Known):
        return ()
    alike: dict[object, list[CoroutineFact]] = {}
    healthy = diagnosis.where == "none"
    for coroutine in facts.coroutines.value:
        key = (_stands(coroutine, healthy=healthy), coroutine.park, tuple(frame.pc for frame in coroutine.frames))
        alike.setdefault(key, []).append(coroutine)
    ordered = sorted(
        alike.values(),
        key=lambda group: (not _stands(group[0], healthy=healthy), group[0].park not in DISK_PARKS, -len(group)),
    )
    return tuple(
        _coroutine_group(group, stuck=_stands(group[0], healthy=healthy), whole=index < FULL_GROUPS)
        for index, group in enumerate(ordered)
    )


def _waiting(diagnosis: Diagnosis) -> set[int]:
    """Return the threads that wait for something, as the diagnosis drew it."""
    if diagnosis.where == "none":
        return set()
    waiters = {edge.waiter for edge in diagnosis.waits.edges}
    return {int(id_[7:]) for id_ in waiters if id_.startswith("thread ") and id_[7:].isdigit()}


def _thread_rank(group: list[ThreadFact], waiting: set[int]) -> tuple[bool, bool, int, int]:
    first = group[0]
    state = first.first.value.state if isinstance(first.first, Known) else ""
    return (first.tid not in waiting, state[:1] != "D", list(Role).index(first.role), -len(group))


def _thread_group(group: list[ThreadFact], *, stuck: bool, whole: bool) -> Group:
    first = group[0]
    look = first.first.value if isinstance(first.first, Known) else None
    comms = tuple(dict.fromkeys(thread.comm for thread in group))
    named = ROLES[first.role]
    title = count(len(group), named) if len(group) > 1 else named
    if any(comm and comm != named for comm in comms):
        title += f" ({', '.join(comms[:4])}{', …' if len(comms) > 4 else ''})"
    state = "state unknown"
    if look:
        words = STATES.get(look.state[:1], "")
        state = f"State {look.state[:1]}" + (f", {words}" if words else "")
        state += f", in {look.syscall.name}" if look.syscall.name not in {"", "running"} else ""
    frames = first.frames.value if isinstance(first.frames, Known) else ()
    lines, more = _frames(frames, whole=whole)
    cites = (look.cite, look.stack_cite) if look and look.kernel_stack else (look.cite,) if look else ()
    return Group(
        title=title,
        stuck=stuck,
        state=state,
        moved=_moved(group),
        top=_top(frames) or (look.wchan if look else ""),
        members=tuple(str(thread.tid) for thread in group[:MOST_NAMES]),
        more_members=max(0, len(group) - MOST_NAMES),
        kernel=look.kernel_stack[:MOST_FRAMES] if look else (),
        frames=lines,
        more_frames=more,
        why_none="" if isinstance(first.frames, Known) else first.frames.why,
        cites=cites + ((first.frames.cite,) if isinstance(first.frames, Known) else ()),
    )


def _coroutine_group(group: list[CoroutineFact], *, stuck: bool, whole: bool) -> Group:
    first = group[0]
    lines, more = _frames(first.frames, whole=whole)
    ours = first.park in DISK_PARKS
    who = count(len(group), "request" if ours else "coroutine")
    disks = tuple(dict.fromkeys(one.disk.value for one in group if ours and isinstance(one.disk, Known)))
    stood = sum(isinstance(coroutine.stuck, Known) and coroutine.stuck.value for coroutine in group)
    known = sum(isinstance(coroutine.stuck, Known) for coroutine in group)
    moved = f"{stood} of {len(group)} stood at the same place in both snapshots"
    if stood == len(group):
        moved = "at the same place in both snapshots"
    elif known and not stood:
        moved = "gone on or ended by the second snapshot"
    elif not known:
        moved = "seen in one snapshot only: whether it moved cannot be told"
    return Group(
        title=f"{who}{': each' if len(group) > 1 else ''} {first.park.words}",
        stuck=stuck,
        state=f"of {', '.join(disks[:4])}" if disks else "",
        moved=moved,
        top=_top(first.frames),
        members=tuple(f"{coroutine.address:#x}" for coroutine in group[:MOST_NAMES]),
        more_members=max(0, len(group) - MOST_NAMES),
        kernel=(),
        frames=lines,
        more_frames=more,
        why_none="" if first.frames else "its stack could not be unwound",
        cites=tuple(coroutine.cite for coroutine in group[:2]),
    )


def _stands(coroutine: CoroutineFact, *, healthy: bool) -> bool:
    return not healthy and coroutine.park in DISK_PARKS and isinstance(coroutine.stuck, Known) and coroutine.stuck.value


def _moved(group: list[ThreadFact]) -> str:
    moves: list[Movement] = [thread.movement.value for thread in group if isinstance(thread.movement, Known)]
    if not moves:
        return "whether it moved cannot be told"
    seconds = duration(moves[0].seconds)
    cpu = max(move.cpu_ns for move in moves) / 1e6
    switches = max((move.voluntary_switches or 0 for move in moves), default=0)
    if not cpu and not switches:
        return f"did not run in {seconds}"
    most = "up to " if len(moves) > 1 else ""
    return f"ran {most}{milliseconds(cpu)} in {seconds}, slept {most}{count(switches, 'time')}"


def _top(frames: Iterable[Frame]) -> str:
    """Return the innermost function that says something: not the system call's own wrapper."""
    names = [frame.function for frame in frames if frame.function]
    dull = (
        "syscall",
        "__",
        "qemu_coroutine_",
        "qemu_co_",
        "qemu_mutex_",
        "qemu_cond_",
        "qemu_futex_",
        "futex",
        "pthread_",
    )
    return next((name for name in names if not name.startswith(dull)), names[0] if names else "")


def _frames(frames: tuple[Frame, ...], *, whole: bool) -> tuple[tuple[FrameLine, ...], int]:
    most = MOST_FRAMES if whole else FEW_FRAMES
    lines = tuple(_line(number, frame) for number, frame in enumerate(frames[:most]))
    return lines, max(0, len(frames) - most)


def _line(number: int, frame: Frame) -> FrameLine:
    module = frame.module.rpartition("/")[2]
    within = f"{module}+{frame.offset:#x}" if module else f"{frame.pc:#x}"
    if frame.function:
        place = f"{frame.file}:{frame.line}" if frame.file and frame.line else within
        return FrameLine(number, frame.function, place, inlined=frame.inlined)
    hint = "a function without a symbol"
    if frame.near or frame.unwind_start:
        near = f" near {frame.near}" if frame.near else ""
        begins = f", which begins at {module}+{frame.unwind_start:#x}" if frame.unwind_start else ""
        hint = f"a static function{near}{begins}"
    return FrameLine(number, "", within, hint)
