"""What sleeping threads wait on: futex words and poll sets, read from the target's memory while the threads sleep."""

from __future__ import annotations

import os
import platform
import struct
from collections.abc import Iterable, Mapping
from functools import cache, partial

import msgspec

from autopsy.bundle import layout, restarts
from autopsy.bundle.futex_words import MUTEX_BYTES, futex_wait
from autopsy.bundle.records import FutexWait, PollFd, PollSet
from autopsy.bundle.sections import Section
from autopsy.capture.reading.procfs import OPEN, ProcDirectory
from autopsy.capture.reading.reader import ReadFailures, SectionRead, take
from autopsy.capture.step import Scene
from autopsy.dataclass import dataclass
from autopsy.linux.tasks.priority import Unpreempted

MOST_POLLFDS = 4096
TRIES = 3
MEMORY = "memory"  # the fate of every read of the target's memory: mmap_lock, and faults that its pages may need
SECONDS = 0.5

# The system calls that a thread sleeps in, by architecture: asm/unistd_64.h, asm-generic/unistd.h.
CALLS: Mapping[str, Mapping[int, str]] = {
    "x86_64": {
        7: "poll",
        23: "select",
        202: "futex",
        232: "epoll_wait",
        270: "pselect6",
        271: "ppoll",
        281: "epoll_pwait",
        441: "epoll_pwait2",
        449: "futex_waitv",
    },
    "aarch64": {
        22: "epoll_pwait",
        72: "pselect6",
        73: "ppoll",
        98: "futex",
        441: "epoll_pwait2",
        449: "futex_waitv",
    },
}
_READ = frozenset(name for calls in CALLS.values() for name in calls.values())
FUTEX, POLL = b"F", b"P"  # what a reader answers with
POLLIN, POLLPRI, POLLOUT = 1, 2, 4

POLLFD = struct.Struct("<ihh")
TIME = struct.Struct("<qq")  # struct timespec, and struct timeval


@dataclass(frozen=True, slots=True)
class Call:
    """A system call that a thread sleeps in, with its six arguments."""

    name: str
    arguments: tuple[int, ...]


def call_of(line: bytes, wchan: bytes = b"", machine: str = platform.machine()) -> Call | None:
    """Read /proc/TID/syscall (`NUMBER ARG… SP PC`, `-1 SP PC`, `running`); None unless it is one of CALLS.

    `wchan`, of the same thread, tells what a sleep is that a stop has interrupted.
    """
    words = line.split()
    try:
        number = int(words[0])
        arguments = tuple(int(word, 16) for word in words[1:7])
    except (IndexError, ValueError):
        return None
    name = CALLS.get(machine, {}).get(number, "")
    if number == restarts.NUMBERS.get(machine):
        name = restarts.interrupted([wchan.decode("ascii", "replace")])
    return Call(name, arguments) if name in _READ and len(arguments) == 6 else None


def call_now(process: ProcDirectory, tid: int) -> Call | None:
    """Return the system call that a thread sleeps in now; None unless it is one of CALLS."""
    return call_of(process.small(f"task/{tid}/syscall"), process.small(f"task/{tid}/wchan"))


def collect_thread_waits(
    scene: Scene, process: ProcDirectory, tasks: Mapping[str, Section], trouble: ReadFailures
) -> None:
    """Store futexes.json and polls.json of the threads that tasks.txt shows asleep.

    A thread that ran while its words were read leaves no record: what it waited on is past.
    """
    asleep = {
        int(section.name.split("/")[1]): call
        for section in tasks.values()
        if section.name.startswith("task/")
        and section.name.endswith("/syscall")
        and (call := call_of(section.data, _wchan(tasks, section.name))) is not None
    }
    reads = (
        SectionRead(f"memory/{tid}", partial(_sleep, process, tid), fate=MEMORY, seconds=SECONDS) for tid in asleep
    )
    memory = take(reads, scene.deadline, trouble)
    sleeps: list[FutexWait | PollSet] = []
    refused = set()
    for tid, call in asleep.items():
        section = memory[f"memory/{tid}"]
        if section.error:
            refused.add(section.error)
            sleeps.append(_record(tid, call, None))
        elif section.data:
            sleeps.append(_decoded(section.data))
    if denied := sorted(refused & {"EACCES", "EPERM"}):
        trouble.notes.append(f"the target's memory: {', '.join(denied)}")
    scene.write_json(layout.FUTEXES, [sleep for sleep in sleeps if isinstance(sleep, FutexWait)])
    scene.write_json(layout.POLLS, [sleep for sleep in sleeps if isinstance(sleep, PollSet)])


def _wchan(tasks: Mapping[str, Section], syscall: str) -> bytes:
    section = tasks.get(syscall.removesuffix("syscall") + "wchan")
    return section.data if section else b""


def _decoded(data: bytes) -> FutexWait | PollSet:
    if data.startswith(FUTEX):
        return msgspec.json.decode(data[1:], type=FutexWait)
    return msgspec.json.decode(data[1:], type=PollSet)


def _sleep(process: ProcDirectory, tid: int) -> bytes:
    """Read one thread's sleep as it stands; return nothing if the thread does not stay asleep for as long as that."""
    memory = _memory(process)
    for _ in range(TRIES):
        ran = process.small(f"task/{tid}/schedstat") or process.small(f"task/{tid}/status")
        call = call_now(process, tid)
        if call is None:
            return b""
        record = _record(tid, call, memory)
        # The third number of schedstat counts the times that it was put on a CPU. Without this, a mutex that was free
        # for a moment looks as if its waiter held it.
        if ran == (process.small(f"task/{tid}/schedstat") or process.small(f"task/{tid}/status")):
            return (FUTEX if isinstance(record, FutexWait) else POLL) + msgspec.json.encode(record)
    return b""


@cache  # in a reader, which has one target and a short life
def _memory(process: ProcDirectory) -> int:
    return os.open("mem", OPEN, dir_fd=process.folder)


def read_memory(memory: int | None, address: int, size: int) -> bytes:
    """Return up to `size` bytes of the target's memory, empty where nothing readable is mapped."""
    if memory is None:
        return b""
    try:
        with Unpreempted():
            return os.pread(memory, size, address)
    except (OSError, OverflowError):
        return b""


def _record(tid: int, call: Call, memory: int | None) -> FutexWait | PollSet:
    """Make the record of one sleep; without memory it says only what the system call's arguments say."""
    match call.name:
        case "futex" | "futex_waitv":  # of futex_waitv, the words are its array of struct futex_waitv
            address, operation, value = call.arguments[:3]
            return futex_wait(tid, address, operation, value, read_memory(memory, address, MUTEX_BYTES))
        case "poll" | "ppoll":
            return _poll(tid, call, memory)
        case "select" | "pselect6":
            return _select(tid, call, memory)
        case _:
            return _epoll(tid, call, memory)


def _poll(tid: int, call: Call, memory: int | None) -> PollSet:
    array, count = call.arguments[:2]
    raw = read_memory(memory, array, min(count, MOST_POLLFDS) * POLLFD.size)
    raw = raw[: len(raw) - len(raw) % POLLFD.size]
    fds = tuple(PollFd(fd=fd, events=events, revents=revents) for fd, events, revents in POLLFD.iter_unpack(raw))
    timeout, unknown = (
        (_milliseconds(call.arguments[2]), False) if call.name == "poll" else _time(memory, call.arguments[2], 1)
    )
    return PollSet(tid=tid, call=call.name, timeout_ns=timeout, fds=fds, truncated=unknown or len(fds) < count)


def _select(tid: int, call: Call, memory: int | None) -> PollSet:
    count = min(call.arguments[0], MOST_POLLFDS)
    size = (count + 63) // 64 * 8
    events: dict[int, int] = {}
    unknown = count < call.arguments[0]
    for address, event in zip(call.arguments[1:4], (POLLIN, POLLOUT, POLLPRI), strict=True):
        bits = read_memory(memory, address, size) if address else b""
        unknown |= bool(address) and len(bits) < size
        whole = int.from_bytes(bits, "little")
        for fd in _set_bits(whole & ((1 << count) - 1)):
            events[fd] = events.get(fd, 0) | event
    timeout, untimed = _time(memory, call.arguments[4], 1000 if call.name == "select" else 1)
    fds = tuple(PollFd(fd=fd, events=event, revents=0) for fd, event in sorted(events.items()))
    return PollSet(tid=tid, call=call.name, timeout_ns=timeout, fds=fds, truncated=unknown or untimed)


def _set_bits(whole: int) -> Iterable[int]:
    return (bit for bit in range(whole.bit_length()) if whole >> bit & 1)


def _epoll(tid: int, call: Call, memory: int | None) -> PollSet:
    timeout, unknown = (
        _time(memory, call.arguments[3], 1)
        if call.name == "epoll_pwait2"
        else (_milliseconds(call.arguments[3]), False)
    )
    epoll_fd = call.arguments[0] & 0xFFFFFFFF
    return PollSet(tid=tid, call=call.name, epoll_fd=epoll_fd, timeout_ns=timeout, truncated=unknown)


def _milliseconds(argument: int) -> int | None:
    """Return a timeout given as an int in ms; a negative one is endless. The upper half of the register is anything."""
    argument &= 0xFFFFFFFF
    return None if argument >= 1 << 31 else argument * 1_000_000


def _time(memory: int | None, address: int, unit: int) -> tuple[int | None, bool]:
    """Return a struct timespec (unit 1) or timeval (unit 1000) in ns, and whether it could not be read."""
    if not address:
        return None, False
    raw = read_memory(memory, address, TIME.size)
    if len(raw) < TIME.size:
        return None, True
    seconds, parts = TIME.unpack(raw)
    return seconds * 1_000_000_000 + parts * unit, False
