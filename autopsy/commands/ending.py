"""Says what became of a captured VM: killed as it was asked, left alone, or ended by itself."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace

from autopsy.bundle.vm_end import VmEnd, in_words
from autopsy.capture.endwatch import EndWatch
from autopsy.commands import answers
from autopsy.commands.capture_options import CaptureOptions
from autopsy.commands.sealed_capture import Captured
from autopsy.dataclass import dataclass
from autopsy.errors import ExitCode
from autopsy.linux import clocks
from autopsy.target import target

NOT_STARTED = "not started again: we did not end it, and whoever did may have had a reason"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A capture, and what became of the kill and of the start after it."""

    captured: Captured
    kill_asked: bool
    kill_done: bool
    kill_words: str
    exit_code: ExitCode
    start_asked: bool = False
    start_done: bool = False
    start_words: str = ""


def left_alone(captured: Captured) -> Ended:
    """Say that nobody asked for a kill."""
    code = ExitCode.INTERRUPTED if captured.interrupted else ExitCode.DONE
    return Ended(captured=captured, kill_asked=False, kill_done=False, kill_words="not asked for", exit_code=code)


def ended_by_itself(captured: Captured, end: VmEnd, wish: CaptureOptions) -> Ended:
    """Say that the VM is gone, and that we have neither killed it nor started it again."""
    words = f"not killed: it ended by itself: {in_words(end)}" if wish.then_kill else "not asked for"
    code = ExitCode.INTERRUPTED if captured.interrupted else ExitCode.VM_ENDED
    start = NOT_STARTED if wish.then_start else ""
    ended = Ended(captured=captured, kill_asked=wish.then_kill, kill_done=False, kill_words=words, exit_code=code)
    return replace(ended, start_asked=wish.then_start, start_words=start)


@dataclass(frozen=True, slots=True)
class Heard:
    """By whom a kill is heard of: `say` is told once, `tell` again and again how it goes."""

    say: Callable[[str], None]
    tell: Callable[[str], None]


def kill_captured(vm: target.Target, watch: EndWatch, captured: Captured, wish: CaptureOptions, heard: Heard) -> Ended:
    """Kill the VM if it may be, and write that into the report. Whatever happens, the capture's result is kept."""
    from autopsy.kill.permission import Insistence  # noqa: PLC0415 - loaded once there is a kill to come
    from autopsy.kill.then_kill import KillOrder, end  # noqa: PLC0415 - likewise

    order = KillOrder(
        then_start=wish.then_start,
        dry_run=wish.dry_run,
        insistence=Insistence(
            even_if_healthy=wish.even_if_healthy,
            even_if_needless=wish.even_if_needless,
            command=_insisting(wish),
        ),
        require=wish.require,
    )
    if captured.diagnosis is not None:
        heard.say(f"verdict: {captured.diagnosis.headline} ({captured.diagnosis.confidence})")
    ending = end(
        vm,
        captured.sealed,
        order,
        diagnosis=captured.diagnosis,
        around=captured.around,
        steps=captured.steps,
        say=heard.say,
        tell=lambda words: heard.tell(f"kill: {words}"),
    )
    heard.tell("")
    captured = replace(captured, notes=captured.notes + ending.notes)
    if ending.exit_code is ExitCode.VM_ENDED and (late := watch.conclude(captured.sealed.path.parent)) is not None:
        return ended_by_itself(replace(captured, end=late), late, wish)
    outcome = "; ".join(filter(None, (ending.words, ending.start_words)))
    answers.tell_in_report(captured.page, captured.report, f"{clocks.now().utc}: {outcome}", captured.began)
    return Ended(
        captured=captured,
        kill_asked=True,
        kill_done=ending.killed,
        kill_words=ending.words,
        exit_code=ending.exit_code,
        start_asked=wish.then_start,
        start_done=ending.started,
        start_words=ending.start_words,
    )


def _insisting(wish: CaptureOptions) -> str:
    """Return the command line that kills this VM although it is proven that it need not be killed."""
    alone = wish.words[:1] == ("capture",) and not wish.one_of_many
    said = wish.words[1:] if alone else (wish.name, "--then-kill")
    return shlex.join(("autopsy", "capture", "--even-if-needless", *said))
