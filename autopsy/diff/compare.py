"""Compares two captures by their facts and their diagnoses."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import msgspec

from autopsy.bundle.reader import Bundle, open_bundle
from autopsy.dataclass import dataclass
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.diff import storage
from autopsy.diff.difference import (
    Count,
    Difference,
    DifferingReading,
    ParkCount,
    Side,
    StackCount,
    compared,
    known,
    same_or_told,
    words,
)
from autopsy.facts.cite import Known
from autopsy.facts.gather import gather_facts
from autopsy.facts.model.facts import CoroutineFact, Facts, Park, Pressure, ThreadFact
from autopsy.report.boxed import read_boxed

MOST_FUNCTIONS = 12  # of a stack that is told
IDLE_PARKS = frozenset({Park.MONITOR_IDLE, Park.NBD_SERVER})

LIBC = re.compile(r"/(libc|libpthread|ld-linux-x86-64)[.-][^/]*$")

K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ComparedCapture:
    """One capture: the bundle, what it tells, and what that means."""

    bundle: Bundle
    facts: Facts
    diagnosis: Diagnosis


def open_capture(path: Path) -> ComparedCapture:
    """Open and diagnose a bundle.

    Raises:
        AutopsyError: it is no bundle, or not a whole one.
    """
    return _looked_at(open_bundle(path))


def _looked_at(bundle: Bundle) -> ComparedCapture:
    facts = gather_facts(bundle)
    return ComparedCapture(bundle, facts, diagnose(facts))


def between(a: Path, b: Path) -> Difference:
    """Return what changed from A to B, as a process says that can do nothing else.

    Raises:
        AutopsyError: one of them is no bundle, or not a whole one.
    """
    answer = read_boxed((a, b), lambda opened: msgspec.json.encode(difference(*map(_looked_at, opened))))
    return msgspec.json.decode(answer, type=Difference)


def difference(a: ComparedCapture, b: ComparedCapture) -> Difference:
    """Return what changed from A to B."""
    same = _same_process(a, b)
    return Difference(
        a=_side(a),
        b=_side(b),
        same_process=same,
        seconds=_seconds(a, b),
        verdict=tuple(_verdict(a.diagnosis, b.diagnosis)),
        target=tuple(_target(a, b)),
        state=tuple(_state(a.facts, b.facts)),
        threads=_counts(_by_role_and_state(a.facts), _by_role_and_state(b.facts)),
        moved=tuple(_moved(a.facts, b.facts)) if same else (),
        stacks=_stacks(a.facts, b.facts),
        requests=_requests(a.facts, b.facts, same=same),
        disks=tuple(storage.disks(a.facts, b.facts, same=same)),
        throttle=tuple(storage.throttle(a.facts, b.facts)),
        jobs=tuple(storage.jobs(a.facts, b.facts)),
        host=tuple(_host(a.facts, b.facts)),
    )


def _side(one: ComparedCapture) -> Side:
    manifest = one.bundle.manifest
    target = manifest.target
    return Side(
        bundle=one.bundle.path.name,
        name=target.name,
        pid=target.pid,
        manager=target.manager,
        utc=manifest.began.utc,
        autopsy=manifest.autopsy,
    )


def _same_process(a: ComparedCapture, b: ComparedCapture) -> bool:
    one, other = a.bundle.manifest, b.bundle.manifest
    return (one.target.pid, one.target.start_ticks, one.host.boot_id, one.host.name) == (
        other.target.pid,
        other.target.start_ticks,
        other.host.boot_id,
        other.host.name,
    )


def _seconds(a: ComparedCapture, b: ComparedCapture) -> float:
    one, other = a.bundle.manifest, b.bundle.manifest
    if (one.host.boot_id, one.host.name) == (other.host.boot_id, other.host.name):
        return (other.began.monotonic_ns - one.began.monotonic_ns) / 1e9
    try:
        return (datetime.fromisoformat(other.began.utc) - datetime.fromisoformat(one.began.utc)).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _verdict(a: Diagnosis, b: Diagnosis) -> Iterator[DifferingReading]:
    yield from compared(
        (
            ("where", a.where, b.where),
            ("signature", a.signature, b.signature),
            ("confidence", a.confidence, b.confidence),
            ("headline", a.headline, b.headline),
            ("objects", ", ".join(a.objects), ", ".join(b.objects)),
            ("beside it", _beside(a), _beside(b)),
        )
    )


def _beside(diagnosis: Diagnosis) -> str:
    return ", ".join(dict.fromkeys(claim.signature for claim in diagnosis.secondary)) or "nothing"


def _target(a: ComparedCapture, b: ComparedCapture) -> Iterator[DifferingReading]:
    one, other = a.bundle.manifest, b.bundle.manifest
    yield from compared(
        (
            ("QEMU", one.target.qemu_version, other.target.qemu_version),
            ("build-id", one.target.build_id, other.target.build_id),
            ("binary", one.target.exe, other.target.exe),
            ("host", one.host.name, other.host.name),
            ("kernel", one.host.kernel, other.host.kernel),
            ("symbols", words(a.facts.symbols, str), words(b.facts.symbols, str)),
        )
    )
    yield from _arguments(a.facts, b.facts)


def _arguments(a: Facts, b: Facts) -> Iterator[DifferingReading]:
    """Yield each option that only one command line has; one that each has once, with another value, in one row."""
    first, second = (Counter(_options(facts)) for facts in (a, b))
    gone, new = list((first - second).elements()), list((second - first).elements())
    for name, value in gone:
        others = [argument for argument in new if argument[0] == name]
        if len(others) == 1 and sum(argument[0] == name for argument in gone) == 1:
            new.remove(others[0])
            yield DifferingReading(what=name, a=value or name, b=others[0][1] or name)
        else:
            yield DifferingReading(what=name, a=value or name, b="not given")
    for name, value in new:
        yield DifferingReading(what=name, a="not given", b=value or name)


def _options(facts: Facts) -> Iterator[tuple[str, str]]:
    """Yield the options of a command line with their values; the program itself is told as the binary."""
    words = list(facts.vm.arguments.value[1:] if isinstance(facts.vm.arguments, Known) else ())
    while words:
        name = words.pop(0)
        value = words.pop(0) if words and name.startswith("-") and not words[0].startswith("-") else ""
        yield name, value


def _state(a: Facts, b: Facts) -> Iterator[DifferingReading]:
    for what, one, other in (
        ("run state", words(a.run_state, lambda s: s.status), words(b.run_state, lambda s: s.status)),
        ("monitor", words(a.monitor.greeting, str), words(b.monitor.greeting, str)),
        ("monitor answers", words(a.monitor.alive, _yes), words(b.monitor.alive, _yes)),
        ("main loop", words(a.main_loop, lambda m: m.state), words(b.main_loop, lambda m: m.state)),
        ("main loop under", words(a.main_loop, lambda m: m.under), words(b.main_loop, lambda m: m.under)),
        ("lock cycles", words(a.locks, lambda m: str(len(m.cycles))), words(b.locks, lambda m: str(len(m.cycles)))),
        ("migration", words(a.migration, str), words(b.migration, str)),
    ):
        yield from same_or_told(what, one, other)


def _yes(value: object) -> str:
    return "yes" if value else "no"


def _threads(facts: Facts) -> tuple[ThreadFact, ...]:
    return known(facts.threads, ())


def _by_role_and_state(facts: Facts) -> Counter[str]:
    return Counter(f"{thread.role.value} in {_letter(thread)}" for thread in _threads(facts))


def _letter(thread: ThreadFact) -> str:
    return thread.first.value.state if isinstance(thread.first, Known) else "?"


def _counts(a: Mapping[str, int], b: Mapping[str, int]) -> tuple[Count, ...]:
    return tuple(
        Count(what=what, a=a.get(what, 0), b=b.get(what, 0))
        for what in sorted(a.keys() | b.keys())
        if a.get(what, 0) != b.get(what, 0)
    )


def _moved(a: Facts, b: Facts) -> Iterator[DifferingReading]:
    """Yield each thread of the one process that came, went, or sleeps elsewhere now."""
    before, after = ({thread.tid: thread for thread in _threads(facts)} for facts in (a, b))
    for tid in sorted(before.keys() | after.keys()):
        one, other = before.get(tid), after.get(tid)
        named = one or other
        if named is not None:
            yield from same_or_told(f"{named.comm} {tid}", _sleep(one), _sleep(other))


def _sleep(thread: ThreadFact | None) -> str:
    if thread is None:
        return "not there"
    if not isinstance(thread.first, Known):
        return f"not known ({thread.first.why})"
    seen = thread.first.value
    call = f" in {seen.syscall.name}" if seen.syscall.name else ""
    return f"{seen.state}{call}{f' ({seen.wchan})' if seen.wchan not in {'', '0'} else ''}"


def _stacks(a: Facts, b: Facts) -> tuple[StackCount, ...]:
    one, other = _by_stack(a), _by_stack(b)
    stacks = [
        StackCount(
            functions=functions,
            roles=tuple(sorted({thread.role.value for thread in (*before, *after)})),
            a=len(before),
            b=len(after),
        )
        for functions in one.keys() | other.keys()
        for before, after in [(one.get(functions, []), other.get(functions, []))]
        if len(before) != len(after)
    ]
    return tuple(sorted(stacks, key=lambda stack: (-abs(stack.a - stack.b), stack.functions)))


def _by_stack(facts: Facts) -> dict[tuple[str, ...], list[ThreadFact]]:
    return _grouped(_threads(facts), _functions)


def _functions(thread: ThreadFact) -> tuple[str, ...]:
    """Return the innermost function and then QEMU's: what lies between them in libc tells nobody anything."""
    frames = known(thread.frames, ())
    kept = frames[:1] + tuple(frame for frame in frames[1:] if not LIBC.search(frame.module))
    named = (frame.function or (f"near {frame.near}" if frame.near else "?") for frame in kept[:MOST_FUNCTIONS])
    return tuple(named)


def _grouped(values: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    groups: dict[K, list[T]] = {}
    for value in values:
        groups.setdefault(key(value), []).append(value)
    return groups


def _requests(a: Facts, b: Facts, *, same: bool) -> tuple[ParkCount, ...]:
    one, other = (_grouped(_parked(facts), lambda coroutine: coroutine.park) for facts in (a, b))
    parks = []
    for park in one.keys() | other.keys():
        before, after = one.get(park, []), other.get(park, [])
        places = {_place(coroutine) for coroutine in after}
        stuck = sorted(coroutine.address for coroutine in before if _place(coroutine) in places) if same else []
        parks.append(
            ParkCount(
                park=park.name.lower(),
                words=park.words,
                a=len(before),
                b=len(after),
                stuck_in_both=tuple(f"{address:#x}" for address in stuck),
            )
        )
    return tuple(sorted(parks, key=lambda park: (-max(park.a, park.b), park.park)))


def _parked(facts: Facts) -> tuple[CoroutineFact, ...]:
    return tuple(coroutine for coroutine in known(facts.coroutines, ()) if coroutine.park not in IDLE_PARKS)


def _place(coroutine: CoroutineFact) -> tuple[int, Park, tuple[int, ...]]:
    return coroutine.address, coroutine.park, tuple(frame.pc for frame in coroutine.frames)


def _host(a: Facts, b: Facts) -> Iterator[DifferingReading]:
    for what, one, other in (
        ("pressure, cpu", a.host.pressure_cpu, b.host.pressure_cpu),
        ("pressure, io", a.host.pressure_io, b.host.pressure_io),
        ("pressure, memory", a.host.pressure_memory, b.host.pressure_memory),
    ):
        yield from same_or_told(what, words(one, _pressure), words(other, _pressure))
    for what, first, second in (
        ("control group", words(a.host.cgroup, str), words(b.host.cgroup, str)),
        ("control group frozen", words(a.host.frozen, _yes), words(b.host.frozen, _yes)),
        ("AIO contexts in use", words(a.host.aio_in_use, _of), words(b.host.aio_in_use, _of)),
    ):
        yield from same_or_told(what, first, second)
    before, after = ({device.name: device for device in known(facts.host.block_devices, ())} for facts in (a, b))
    for name in sorted(before.keys() & after.keys()):
        one_device, other_device = before[name], after[name]
        yield from same_or_told(
            f"{name} in flight",
            f"{one_device.in_flight}{' (suspended)' if one_device.suspended else ''}",
            f"{other_device.in_flight}{' (suspended)' if other_device.suspended else ''}",
        )


def _pressure(value: Pressure) -> str:
    return f"some {value.some:g} %, full {value.full:g} %"


def _of(value: tuple[int, int]) -> str:
    return f"{value[0]} of {value[1]}"
