"""Runs many small pieces of work in a few processes, each bounded in memory and time: the input is a stranger's."""

from __future__ import annotations

import os
import resource
import select
import signal
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import field
from functools import partial
from pathlib import Path

from autopsy.dataclass import dataclass
from autopsy.linux.confine.sandbox import stay
from autopsy.linux.tasks.forking import LENGTH, Child, PipeEnds, end, fork, framed, send

WORK_SECONDS = 30.0  # for one piece: decompressing a gigabyte of core takes 2
MEMORY = 1 << 30  # of address space, beyond what the worker starts with
MOST_PIECES = 500  # then a fresh worker takes over, so that what a piece may have left behind cannot add up
MOST_ANSWER = 16 << 20
ENDED_SECONDS = 5.0

INDEX = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Done:
    """What a piece of work answered. `error` is empty unless it did not: killed, out of memory, broken."""

    index: int
    answer: bytes
    seconds: float
    error: str = ""


@dataclass(slots=True)
class PoolProcess:
    """One process that is asked by indices, one after the other."""

    child: Child
    pieces: int = 0
    index: int = -1
    since: float = 0.0
    received: bytearray = field(default_factory=bytearray)


def work_through(
    count: int,
    work: Callable[[int], bytes],
    *,
    jobs: int,
    seconds: float = WORK_SECONDS,
    memory: int = MEMORY,
    readable: tuple[Path, ...] = (),
) -> Iterator[Done]:
    """Yield each index with what `work` answered, as they come to their end.

    The workers read `readable`, the system's files and our own, and write nothing. A piece that hangs is killed with
    its worker, and so is one that wants more memory than it may have.
    Concurrency: call it only from a process with one thread.
    """
    waiting = iter(range(count))
    busy: list[PoolProcess] = []
    idle: list[PoolProcess] = []
    try:
        while True:
            while len(busy) < jobs and (index := next(waiting, None)) is not None:
                worker = idle.pop() if idle else _start(work, partial(_bound, memory, readable), [*busy, *idle])
                busy.append(worker)  # before anything is asked, so that it is ended in every case
                _ask(worker, index)
            if not busy:
                return
            for worker in _stirring(busy, seconds):
                done = _listen(worker, seconds)
                if done is None:
                    continue
                busy.remove(worker)
                if done.error or worker.pieces >= MOST_PIECES:
                    end(worker.child, seconds=ENDED_SECONDS)
                else:
                    idle.append(worker)
                yield done
    finally:
        for worker in (*busy, *idle):
            end(worker.child, seconds=ENDED_SECONDS)


def _start(work: Callable[[int], bytes], bound: Callable[[], None], others: list[PoolProcess]) -> PoolProcess:
    def live(ends: PipeEnds) -> int:
        for other in others:
            os.close(other.child.questions)  # a worker whose last writer has gone must notice it
        bound()
        return _serve(work, ends)

    return PoolProcess(fork(live))


def _bound(memory: int, readable: tuple[Path, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end is ours
    with open("/proc/self/statm", "rb") as stream:
        held = int(stream.read().split()[0]) * resource.getpagesize()
    for limit, value in ((resource.RLIMIT_AS, held + memory), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        _, hard = resource.getrlimit(limit)
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (most, hard))
    stay(readable)


def _serve(work: Callable[[int], bytes], ends: PipeEnds) -> int:
    while question := os.read(ends.hears, INDEX.size):
        try:
            good, data = True, work(INDEX.unpack(question)[0])
        except MemoryError:
            good, data = False, b"it wants more memory than a case may have"
        except Exception as error:  # noqa: BLE001 - whatever it is, its words are the piece's answer
            good, data = False, f"{type(error).__name__}: {error}"[:4096].encode("utf-8", "replace")
        send(ends.tells, framed(bytes([good]) + data))
    return 0


def _ask(worker: PoolProcess, index: int) -> None:
    worker.index, worker.since = index, time.monotonic()
    worker.pieces += 1
    worker.received.clear()
    try:
        os.write(worker.child.questions, INDEX.pack(index))
    except BrokenPipeError:
        return  # it was killed from outside: its silence is told where it is listened to


def _stirring(busy: list[PoolProcess], seconds: float) -> list[PoolProcess]:
    """Wait until a worker has something to say or its time is up, and return those."""
    poller = select.poll()
    for worker in busy:
        poller.register(worker.child.answers, select.POLLIN)
    wait = max(0.0, min(worker.since + seconds for worker in busy) - time.monotonic())
    ready = {descriptor for descriptor, _ in poller.poll(wait * 1000 + 1)}
    now = time.monotonic()
    return [worker for worker in busy if worker.child.answers in ready or now >= worker.since + seconds]


def _listen(worker: PoolProcess, seconds: float) -> Done | None:
    """Return the worker's answer, once it is whole or never will be."""
    spent = time.monotonic() - worker.since
    error = ""
    if spent >= seconds:
        error = f"no answer in {seconds:g} s: it was given up"
    elif part := os.read(worker.child.answers, 1 << 20):
        worker.received += part
    else:
        error = "its worker process ended without an answer"
    length = LENGTH.unpack_from(worker.received)[0] if len(worker.received) >= LENGTH.size else 0
    if length > MOST_ANSWER:
        error = "its answer is larger than any can be"
    if not error and (not length or len(worker.received) < LENGTH.size + length):
        return None
    good, data = worker.received[LENGTH.size : LENGTH.size + 1], bytes(worker.received[LENGTH.size + 1 :])
    if error or good == b"\0":
        return Done(worker.index, b"", spent, error or data.decode("utf-8", "replace"))
    return Done(worker.index, data, spent)
