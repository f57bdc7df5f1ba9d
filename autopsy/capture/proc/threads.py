"""What /proc says of every thread, and of the process as a whole, without any lock of its memory map."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

from autopsy.bundle import layout
from autopsy.bundle.sections import Section
from autopsy.capture.reading.procfs import ProcDirectory
from autopsy.capture.reading.reader import ReadFailures, SectionRead, store
from autopsy.capture.step import Scene

# Of one thread, what changes fastest first.
OF_A_THREAD = ("stat", "syscall", "wchan", "stack", "schedstat", "comm", "status")
OF_THE_PROCESS = ("stat", "status", "schedstat", "io", "cgroup", "limits", "oom_score_adj", "sched", "comm")
LINKS = (
    *(f"ns/{kind}" for kind in ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")),
    "exe",
    "root",
    "cwd",
)


def store_tasks(scene: Scene, process: ProcDirectory, trouble: ReadFailures) -> dict[str, Section]:
    """Store tasks.txt and return its sections.

    Names are paths below /proc/PID; `clock/begin` and `clock/end` hold CLOCK_MONOTONIC in ns.
    """
    tasks = store(scene, layout.TASKS, _reads(process), trouble)
    denied = {section.error for name, section in tasks.items() if name.endswith("/stack") and section.error}
    if refusals := sorted(denied & {"EACCES", "EPERM"}):
        trouble.notes.append(f"kernel stacks: {', '.join(refusals)}")
    return tasks


def _reads(process: ProcDirectory) -> Iterator[SectionRead]:
    yield SectionRead("clock/begin", _now)
    for tid in process.numbers("task"):
        for file in OF_A_THREAD:
            path = f"task/{tid}/{file}"
            yield SectionRead(path, partial(process.read, path))
    yield SectionRead("clock/end", _now)
    for file in OF_THE_PROCESS:
        yield SectionRead(file, partial(process.read, file))
    for file in LINKS:
        yield SectionRead(file, partial(process.link, file))


def _now() -> bytes:
    return b"%d" % time.monotonic_ns()
