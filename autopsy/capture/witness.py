"""The first look at a VM, which asks it nothing and changes nothing."""

from __future__ import annotations

from functools import partial

from autopsy.bundle import names
from autopsy.capture import descriptors, sleeps, tasks
from autopsy.capture.procfs import Gone, Process, held
from autopsy.capture.readers import Read, Trouble, sections
from autopsy.capture.step import Failed, Outcome, Scene

# These take mmap_lock, which a stuck thread may hold for ever (auxv does not; without it no coroutine can be read).
# smaps walks the page tables of guest RAM, so it has the longest time, and comes last.
MAPPED = (
    ("auxv", names.AUXV, 1 << 16, 1.0),
    ("cmdline", names.CMDLINE, 4 << 20, 1.0),
    ("maps", names.MAPS, 32 << 20, 1.0),
    ("smaps", names.SMAPS, 128 << 20, 3.0),
)
MMAP_LOCK = "mmap_lock"


def look(scene: Scene) -> Outcome:
    """Take every thread's state, the descriptors, what the threads sleep on; last what can hang on mmap_lock.

    The order is that of risk: whatever hangs, everything before it is stored. A hang makes the outcome TimedOut, not
    Collected: maps that are missing must be seen to be missing, and which read hung where says what is wrong.
    """
    trouble = Trouble()
    try:
        with held(scene.target) as process:
            found = tasks.take(scene, process, trouble)
            descriptors.take(scene, process, trouble)
            sleeps.look(scene, process, found, trouble)
            _mapped(scene, process, trouble)
    except Gone as error:
        return Failed(str(error))
    return trouble.outcome()


def _mapped(scene: Scene, process: Process, trouble: Trouble) -> None:
    reads = (Read(name, partial(process.read, name, most), MMAP_LOCK, seconds) for name, _, most, seconds in MAPPED)
    files = {name: file for name, file, _, _ in MAPPED}
    for batch in sections(reads, scene.deadline, trouble):
        for section in batch:
            if not section.error:
                scene.write(files[section.name], section.data)
            elif section.name not in {hang.name for hang in trouble.hangs}:
                trouble.notes.append(f"{section.name}: {section.error}")
