"""What was seen of each thread before it was stopped: its name, its state, where in the kernel it slept."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from autopsy.bundle import layout, proc_stat, sections
from autopsy.bundle.records import FreezeRecord
from autopsy.dataclass import dataclass


@dataclass(frozen=True, slots=True)
class ThreadState:
    """One thread. `state` is the letter of /proc/TID/stat, empty when it was not read."""

    tid: int
    comm: str = ""
    state: str = ""
    wchan: str = ""


def tasks(read: Callable[[str], bytes]) -> dict[int, ThreadState]:
    """Return every thread that the witness or the freeze saw."""
    states: dict[int, ThreadState] = {}
    for thread in freeze_record(read).threads:
        states[thread.tid] = ThreadState(thread.tid, comm=thread.comm)
    seen: dict[int, dict[str, str]] = {}
    for section in sections.parse(read(layout.evidence(layout.WITNESS, layout.TASKS))):
        match section.name.split("/"):
            case ["task", tid, ("comm" | "stat" | "wchan") as kind] if tid.isdecimal() and not section.error:
                seen.setdefault(int(tid), {})[kind] = section.data.decode("utf-8", "backslashreplace").rstrip("\n")
    for number, files in seen.items():
        comm = files.get("comm", "") or (states[number].comm if number in states else "")
        letters = proc_stat.fields(files.get("stat", "").encode())
        state = letters[0][:1].decode("ascii", "replace") if letters else ""
        states[number] = ThreadState(number, comm, state, files.get("wchan", ""))
    return states


def freeze_record(read: Callable[[str], bytes], step: str = layout.FREEZE) -> FreezeRecord:
    """Return what freeze.json says, an empty record when there is none."""
    try:
        return msgspec.json.decode(read(layout.evidence(step, layout.FREEZE_RECORD)), type=FreezeRecord)
    except msgspec.DecodeError:
        return FreezeRecord(
            architecture="",
            page_size=0,
            frozen_at_ns=0,
            stops=(),
            threads=(),
            left_out=(),
            copied_bytes=0,
            core_bytes=0,
        )
