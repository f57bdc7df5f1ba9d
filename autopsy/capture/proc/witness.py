"""The first look at a VM, which asks it nothing and changes nothing."""

from __future__ import annotations

from functools import partial

from autopsy.bundle import layout
from autopsy.capture.proc import descriptors, thread_waits, threads
from autopsy.capture.reading.procfs import ProcDirectory, ProcessEnded, held
from autopsy.capture.reading.reader import ReadFailures, SectionRead, Truncated, sections
from autopsy.capture.step import Failed, Outcome, Scene
from autopsy.dataclass import dataclass
from autopsy.linux.tasks.priority import Unpreempted


@dataclass(frozen=True, slots=True)
class LockedMapFile:
    """A file of /proc/PID that may need mmap_lock, which a stuck thread can hold for ever."""

    path: str
    file: str
    most: int
    seconds: float
    fate: str = ""


# auxv takes no such lock, nor does maps on newer kernels (seen on 6.18); no stack is read without it. smaps and
# numa_maps are never read: they walk, with that lock held, every page that the guest has touched; the VM's mmap waits.
MAPPED = (
    LockedMapFile("auxv", layout.AUXV, 1 << 16, 1.0),
    LockedMapFile("maps", layout.MAPS, 32 << 20, 1.0),
    LockedMapFile("cmdline", layout.CMDLINE, 4 << 20, 1.0, "mmap_lock"),
)


def witness_threads(scene: Scene) -> Outcome:
    """Take every thread's state, the descriptors, what the threads sleep on; last what can hang on mmap_lock.

    The order is that of risk: whatever hangs, everything before it is stored. A hang makes the outcome TimedOut, not
    Collected: maps that are missing must be seen to be missing, and which read hung where says what is wrong.
    """
    trouble = ReadFailures()
    try:
        with held(scene.target) as process, trouble.one_reader():
            tasks = threads.store_tasks(scene, process, trouble)
            descriptors.store_descriptors(scene, process, trouble)
            thread_waits.collect_thread_waits(scene, process, tasks, trouble)
            _mapped(scene, process, trouble)
    except ProcessEnded as error:
        return Failed(str(error))
    return trouble.outcome()


def _read(process: ProcDirectory, file: LockedMapFile) -> bytes | Truncated:
    with Unpreempted():
        return process.read(file.path, file.most)


def _mapped(scene: Scene, process: ProcDirectory, trouble: ReadFailures) -> None:
    reads = (SectionRead(file.path, partial(_read, process, file), file.fate, file.seconds) for file in MAPPED)
    files = {file.path: file.file for file in MAPPED}
    for batch in sections(reads, scene.deadline, trouble):
        for section in batch:
            if not section.error:
                scene.write(files[section.name], section.data)
            elif section.name not in {hang.name for hang in trouble.hangs}:
                trouble.notes.append(f"{section.name}: {section.error}")
