"""Has a capture's evidence diagnosed and rendered by a process that can do nothing else, and stores what it says."""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from autopsy.bundle import layout
from autopsy.bundle.reader import hold
from autopsy.bundle.seal import Sealed
from autopsy.capture.staging.staging import Staging
from autopsy.capture.step import Deadline
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.files import private
from autopsy.linux.child import ChildFailed, ChildTimedOut, in_child

REPORT_SECONDS = 8.0
ANSWER_SECONDS = 16.0
SPARE_SECONDS = 0.5  # of the answers' time, for what came out of the sandbox to be written


def diagnose(staging: Staging, budget: Deadline) -> Diagnosis | None:
    """Diagnose and render inside a child: a bug or a hang there must not cost the seal, nor a report the diagnosis."""

    def work() -> bytes:
        from autopsy.report.boxed import in_box  # noqa: PLC0415 - loaded already: see plan.MEANWHILE
        from autopsy.report.store import answer  # noqa: PLC0415 - likewise

        held = hold(staging.work)

        def hear(name: str, data: bytes) -> bytes:
            if name in {layout.DIAGNOSIS, layout.REPORT}:
                staging.put(name, data)
            return b""

        return in_box(
            lambda _box, line: answer(held.read(), line.tell).unrendered.encode("utf-8", "replace"),
            thing="the evidence",
            seconds=max(1.0, seconds - SPARE_SECONDS),
            hear=hear,
        )

    seconds = min(ANSWER_SECONDS, max(1.0, budget.left()))

    try:
        trouble = in_child(work, seconds).decode("utf-8", "replace")
    except (ChildTimedOut, ChildFailed) as error:
        trouble = str(error)
    found: Diagnosis | None = None
    with contextlib.suppress(OSError, msgspec.DecodeError):
        found = msgspec.json.decode((staging.work / layout.DIAGNOSIS).read_bytes(), type=Diagnosis)
    if trouble:
        what, command = ("report", "report") if found else ("diagnosis", "analyze")
        staging.notes.append(f"the {what} could not be made: {trouble}; `autopsy {command} BUNDLE` tries again")
    return found


def first_words(work: Path) -> bytes:
    """Return the headline that the evidence so far would have; to be run in a child, as all that judges."""
    from autopsy.diagnose.verdict import diagnose as judge  # noqa: PLC0415 - loaded already: see plan.MEANWHILE
    from autopsy.facts.gather import gather_facts  # noqa: PLC0415 - likewise
    from autopsy.report.boxed import in_box  # noqa: PLC0415 - likewise

    held = hold(work)
    return in_box(
        lambda _box, _line: judge(gather_facts(held.read())).headline.encode(),
        thing="the evidence",
        seconds=ANSWER_SECONDS,
    )


def tell_in_report(sealed: Sealed, place: Path | None, kill: str) -> None:
    """Write the kill into the report that stands beside the bundle; the sealed one stays as it was."""
    if place is None:
        return

    def work() -> bytes:
        from autopsy.report.boxed import read_sealed  # noqa: PLC0415 - loaded already: see plan.MEANWHILE
        from autopsy.report.html import html  # noqa: PLC0415 - likewise

        data = read_sealed(sealed, lambda opened: html(opened, kill=kill).encode())
        private.publish(place, data)
        return b""

    with contextlib.suppress(ChildTimedOut, ChildFailed):  # the report from before the kill is as good as ever
        in_child(work, REPORT_SECONDS)
