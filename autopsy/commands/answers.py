"""Has a capture's evidence diagnosed and rendered by a process that can do nothing else, and stores what it says."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from autopsy.bundle import layout
from autopsy.bundle.manifest import Clocks
from autopsy.capture.pace import STARVED, Pace, in_child_behind
from autopsy.capture.staging.staging import Staging
from autopsy.capture.step import Deadline
from autopsy.dataclass import dataclass
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.facts.model.around import Around
from autopsy.files import private
from autopsy.linux.child import ChildFailed, ChildTimedOut, in_child
from autopsy.text import printable

if TYPE_CHECKING:
    from autopsy.report.store import Answers

REPORT_SECONDS = 8.0
SEALS_SHARE = 0.6  # of the budget that is left on a starved host: a diagnosis can be made again
ANSWER_SECONDS = 16.0
SPARE_SECONDS = 0.5  # of the answers' time, for what came out of the sandbox to be written


@dataclass(frozen=True, slots=True)
class JudgedCapture:
    """What the evidence says, None where that could not be told, and what else has a hand on the VM."""

    diagnosis: Diagnosis | None
    around: Around


def diagnose(staging: Staging, budget: Deadline, pace: Pace) -> JudgedCapture:
    """Diagnose and render inside a child: a bug or a hang there must not cost the seal, nor a report the diagnosis.

    What the seal will take of the budget is left to it.
    """

    def work() -> bytes:
        from autopsy.bundle.reader import hold  # noqa: PLC0415 - likewise
        from autopsy.report.boxed import in_box  # noqa: PLC0415 - loaded already: see plan.MEANWHILE
        from autopsy.report.store import answer  # noqa: PLC0415 - likewise

        held = hold(staging.work)

        def hear(name: str, data: bytes) -> bytes:
            if name in {layout.DIAGNOSIS, layout.REPORT}:
                staging.put(name, data)
            return b""

        return in_box(
            lambda _box, line: _besides(answer(held.read(), line.tell)),
            source="the evidence",
            seconds=max(1.0, seconds - SPARE_SECONDS),
            hear=hear,
        )

    pace.look()
    seal = budget.left() * SEALS_SHARE if pace.slowness >= STARVED else 0.0
    seconds = min(ANSWER_SECONDS, max(1.0, budget.left() - seal))
    try:
        trouble, around = msgspec.json.decode(in_child_behind(work, seconds, pace), type=tuple[str, Around])
    except (ChildTimedOut, ChildFailed, msgspec.DecodeError) as error:
        trouble = str(error)
        around = Around((f"what else is at work on it could not be told ({printable(trouble)})",))
    diagnosis: Diagnosis | None = None
    with contextlib.suppress(OSError, msgspec.DecodeError):
        diagnosis = msgspec.json.decode((staging.work / layout.DIAGNOSIS).read_bytes(), type=Diagnosis)
    if trouble:
        what, command = ("report", "report") if diagnosis else ("diagnosis", "analyze")
        staging.notes.append(f"the {what} could not be made: {trouble}; `autopsy {command} BUNDLE` tries again")
    return JudgedCapture(diagnosis, around)


def _besides(answers: Answers) -> bytes:
    return msgspec.json.encode((answers.unrendered.encode("utf-8", "replace").decode(), answers.around))


def first_words(work: Path) -> bytes:
    """Return the headline that the evidence so far would have; to be run in a child, as all that judges."""
    from autopsy.bundle.reader import hold  # noqa: PLC0415 - likewise
    from autopsy.diagnose.verdict import diagnose as judge  # noqa: PLC0415 - loaded already: see plan.MEANWHILE
    from autopsy.facts.gather import gather_facts  # noqa: PLC0415 - likewise
    from autopsy.report.boxed import in_box  # noqa: PLC0415 - likewise

    held = hold(work)
    return in_box(
        lambda _box, _line: judge(gather_facts(held.read())).headline.encode(),
        source="the evidence",
        seconds=ANSWER_SECONDS,
    )


def tell_in_report(page: bytes, place: Path | None, kill: str, began: Clocks) -> None:
    """Write the kill into the report that stands beside the bundle, given as it was rendered; the sealed one stays."""
    if place is None or not page:
        return

    def work() -> bytes:
        from autopsy.report.html import with_kill  # noqa: PLC0415 - loaded already: see plan.MEANWHILE

        private.publish(place, with_kill(page, kill, began))
        return b""

    with contextlib.suppress(ChildTimedOut, ChildFailed):  # the report from before the kill is as good as ever
        in_child(work, REPORT_SECONDS)
