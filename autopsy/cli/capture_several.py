"""`autopsy capture` of several VMs: how each is heard and interrupted, and the one summary of all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import msgspec

from autopsy.cli import streams, summary, terminal
from autopsy.cli.json_output import answer, as_text
from autopsy.cli.printing import say, show
from autopsy.text import plain

if TYPE_CHECKING:
    from autopsy.capture.run import Watcher
    from autopsy.commands.capture_many import FinishedCapture, Many, One, Order
    from autopsy.commands.ending import Ended
    from autopsy.errors import ExitCode


class NotCapturedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A VM that was not captured, and why."""

    target: str
    why: str
    remedy: str
    exit_code: int


class ManyAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What `capture --json` prints of several VMs: each as of one, and those that were not captured."""

    captures: tuple[msgspec.Raw, ...]
    not_captured: tuple[NotCapturedAnswer, ...]
    notes: tuple[str, ...]
    exit_code: int


def capture_several(order: Order, *, quiet: bool, json: bool) -> ExitCode:
    """Capture every VM of the order, and print one summary; return the gravest exit code."""
    from autopsy.commands.capture_many import capture_many

    err = -1 if sys.stderr is None else fcntl.fcntl(sys.stderr.fileno(), fcntl.F_DUPFD_CLOEXEC, 3)

    def within(work: Callable[[Watcher, Callable[[str], None]], Ended], name: str) -> Ended:
        with _heard(err, name, quiet=quiet) as (watcher, tell):
            return work(watcher, tell)

    try:
        with streams.guarded():
            with terminal.watcher(quiet=True) as watcher:
                many = capture_many(
                    order,
                    watcher,
                    render=_told,
                    within=within,
                    say=lambda line: None if quiet else say(plain(line)),
                )
            for note in () if quiet else many.notes:
                say(plain(f"note: {note}"))
            for line in [_json(many)] if json else _summary(many):
                show(line)
    finally:
        if err >= 0:
            os.close(err)
    return many.exit_code


@contextlib.contextmanager
def _heard(err: int, name: str, *, quiet: bool) -> Iterator[tuple[Watcher, Callable[[str], None]]]:
    """Let a capture in a process of its own be interrupted, and say on our stderr what must be known beforehand."""
    if err >= 0:
        os.dup2(err, 2)
    with streams.guarded(), terminal.watcher(quiet=True) as watcher:
        yield watcher, lambda line: None if quiet else say(plain(f"{name}: {line}"))


def _told(ended: Ended) -> FinishedCapture:
    from autopsy.commands.capture_many import FinishedCapture

    record = ended.captured.target.record
    diagnosis = ended.captured.diagnosis
    verdict = summary.of_diagnosis(diagnosis) if diagnosis else "UNKNOWN no verdict could be made"
    lines = [f"{record.name} (process {record.pid}): {verdict}"]
    now = next((advice for advice in diagnosis.advice if advice.when == "now"), None) if diagnosis else None
    if now is not None and not ended.kill_done and ended.captured.end is None:
        lines.append(f"do: {now.command}")
    if ended.kill_asked:
        lines.append(f"{record.name}: {'killed' if ended.kill_done else 'NOT KILLED'}: {ended.kill_words}")
    return FinishedCapture(exit_code=ended.exit_code, json=answer(ended), lines=tuple(lines))


class _Shown(msgspec.Struct, frozen=True):
    """What the summary shows of a capture."""

    bundle: str
    report: str


def _summary(many: Many) -> Iterator[str]:
    for one in many.ones:
        yield from _lines(one)
    made = sum(one.finished is not None for one in many.ones)
    if many.ones:
        yield f"{made} of {len(many.ones)} captured; `autopsy list` shows what is stored"
    else:
        yield "no virtual machine of this host looks stuck"


def _lines(one: One) -> Iterator[str]:
    if one.finished is None:
        yield summary.heading("FAILED", f"{one.name}: {one.trouble}", bad=True)
        yield summary.row("", one.remedy)
        return
    first, *more = one.finished.lines
    shown = msgspec.json.decode(one.finished.json, type=_Shown)
    yield summary.heading("VM", first)
    for line in more:
        yield summary.row("", line)
    yield summary.row("", shown.report or shown.bundle)


def _json(many: Many) -> str:
    return as_text(
        ManyAnswer(
            captures=tuple(msgspec.Raw(one.finished.json) for one in many.ones if one.finished),
            not_captured=tuple(
                NotCapturedAnswer(target=one.name, why=one.trouble, remedy=one.remedy, exit_code=one.exit_code)
                for one in many.ones
                if one.finished is None
            ),
            notes=many.notes,
            exit_code=many.exit_code,
        )
    )
