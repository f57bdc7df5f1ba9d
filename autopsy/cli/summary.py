"""The block at the end: what is wrong, what to do, what became of the VM, and where the evidence is."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterator
from shutil import get_terminal_size
from typing import TYPE_CHECKING

from autopsy.bundle.vm_end import in_words
from autopsy.diagnose.diagnosis import Diagnosis, Where
from autopsy.text import plain

if TYPE_CHECKING:
    from autopsy.commands.ending import Ended
    from autopsy.commands.stored import SealedWords, ShownBundle

LABEL = 9  # of the longest label, with room
LEAST_WIDTH = 40
COPIED = frozenset({"DO", "IF NOT", "report", "bundle"})
STATES: dict[Where, str] = {"none": "HEALTHY", "vm-state": "PAUSED", "unknown": "UNKNOWN"}
GOOD = frozenset({"HEALTHY", "PAUSED"})
BOLD, RED, PLAIN = "\033[1m", "\033[31m", "\033[0m"
VM_ENDED = "vm-ended"


def block(ended: Ended) -> Iterator[str]:
    """Yield what a capture comes to; ahead of it that the VM has ended, where it has."""
    captured = ended.captured
    if captured.end is not None:
        yield row("ended", in_words(captured.end))
    if captured.diagnosis is None:
        yield heading("UNKNOWN", "no verdict could be made: see the notes above; the evidence is whole")
    else:
        yield from verdict(captured.diagnosis, alive=not ended.kill_done and captured.end is None)
    yield _vm(ended)
    yield row("report", str(captured.report or "inside the bundle"))
    yield row("bundle", f"{captured.sealed.path} ({captured.sealed.size / 1e6:.1f} MB)")


def stored(capture: ShownBundle) -> Iterator[str]:
    """Yield what a stored capture came to."""
    diagnosis, kill = capture.words.diagnosis, capture.kill
    if diagnosis is None:
        yield heading("UNKNOWN", "no verdict was stored: `autopsy analyze` makes one")
    else:
        yield from verdict(diagnosis, alive=capture.is_here)
        if not capture.is_here and diagnosis.advice and diagnosis.where != "none":
            yield row("", "that process is not here any more: what to do then stands in the report")
    if (manifest := capture.words.manifest) is not None:
        record = manifest.target
        fate = f"; killed: {kill.how}" if kill else ""
        yield row("VM", f"{record.name} (process {record.pid}), captured {manifest.began.utc[:19]}Z{fate}")
    yield row("report", str(capture.report or f"inside the bundle: autopsy report {capture.bundle} -o report.html"))
    yield row("bundle", f"{capture.bundle} ({capture.size / 1e6:.1f} MB)")


def in_short(answer: SealedWords) -> str:
    """Return a stored capture's verdict on one line."""
    if answer.diagnosis is None:
        return f"({answer.trouble or 'no verdict was stored'})"
    return of_diagnosis(answer.diagnosis)


def of_diagnosis(diagnosis: Diagnosis) -> str:
    """Return a verdict on one line."""
    return f"{state_of(diagnosis)} {diagnosis.headline} ({diagnosis.confidence})"


def state_of(diagnosis: Diagnosis) -> str:
    """Return the one word for how a VM is."""
    return "ENDED" if diagnosis.signature == VM_ENDED else STATES.get(diagnosis.where, "STUCK")


def verdict(diagnosis: Diagnosis, *, alive: bool = True) -> Iterator[str]:
    """Yield what is wrong, how sure that is, what to do while the VM lives, and the bug where QEMU has it."""
    state = state_of(diagnosis)
    yield heading(state, f"{diagnosis.headline} ({diagnosis.confidence})")
    if diagnosis.since:
        yield row("", diagnosis.since)
    shown = {"now": "DO", "if-not": "IF NOT"} if alive and state != "HEALTHY" else {}
    for when, label in shown.items():
        first = next((advice for advice in diagnosis.advice if advice.when == when), None)
        if first is not None:
            yield heading(label, first.command)
            yield row("", first.why)
    for bug in diagnosis.known_bugs:
        if bug.in_this_build == "affected":
            yield row("bug", bug.sentence)
            if bug.link:
                yield row("", bug.link)


def _vm(ended: Ended) -> str:
    record = ended.captured.target.record
    name = f"{record.name} (process {record.pid})"
    if ended.captured.end is not None and not ended.kill_done:
        return row("VM", f"{name}: it ended by itself")
    if not ended.kill_asked:
        return row("VM", f"{name}: untouched, it runs on as before")
    started = f"; {ended.start_words}" if ended.start_words else ""
    if ended.kill_done:
        return row("VM", f"{name}: killed: {ended.kill_words}{started}")
    # Whoever asked for a kill and has a living VM must not overlook it.
    return heading("VM", f"NOT KILLED: {ended.kill_words.removeprefix('not killed: ')}{started}", bad=True)


def row(label: str, text: str) -> str:
    """Return a line of the block, in as many lines of a terminal as it takes.

    What is copied stays in one piece: a path, and whatever has no room to be broken in.
    """
    line = f"{label:<{LABEL}}{plain(text)}"
    width = get_terminal_size().columns if sys.stdout.isatty() else 0
    if width < LEAST_WIDTH or len(line) <= width or label in COPIED:
        return line
    return textwrap.fill(line, width, subsequent_indent=" " * LABEL, break_long_words=False, break_on_hyphens=False)


def heading(label: str, text: str, *, bad: bool | None = None) -> str:
    """Return a line that is to be seen first: bold on a terminal, and red where it is bad news."""
    line = row(label, text)
    if not sys.stdout.isatty() or "NO_COLOR" in os.environ:
        return line
    is_bad = label in {"STUCK", "ENDED", "UNKNOWN"} if bad is None else bad
    colour = RED if is_bad else ""
    return f"{BOLD}{colour}{line[:LABEL]}{PLAIN}{BOLD}{line[LABEL:]}{PLAIN}"
