"""Writes what a folder of evidence says: diagnosis.json and report.html."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from autopsy.bundle import layout
from autopsy.bundle.reader import Bundle, hold
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.facts import platform
from autopsy.facts.gather import gather_facts
from autopsy.facts.model.around import Around
from autopsy.files import private
from autopsy.report.boxed import SECONDS, in_box, read_boxed
from autopsy.report.html import render


class Answers(msgspec.Struct, frozen=True):
    """What was written: `unrendered` says why there is no report, empty where there is one."""

    diagnosis: Diagnosis
    unrendered: str
    around: Around = Around()


def write_answers(folder: Path) -> Answers:
    """Diagnose the evidence in `folder`, store diagnosis.json there, and then report.html of the same facts.

    A report that cannot be rendered costs nothing but itself.

    Raises:
        AutopsyError: it is no bundle, or what read it ended.
    """
    held = hold(folder)

    def hear(name: str, data: bytes) -> bytes:
        if name in {layout.DIAGNOSIS, layout.REPORT}:
            private.store(folder / name, data)
        return b""

    unrendered = in_box(
        lambda _box, line: answer(held.read(), line.tell).unrendered.encode("utf-8", "replace"),
        source=str(folder),
        seconds=SECONDS,
        hear=hear,
    )
    diagnosis = msgspec.json.decode((folder / layout.DIAGNOSIS).read_bytes(), type=Diagnosis)
    return Answers(diagnosis, unrendered.decode("utf-8", "replace"))


def answer(bundle: Bundle, write: Callable[[str, bytes], None]) -> Answers:
    """Diagnose a bundle, and hand out diagnosis.json and then report.html of the same facts."""
    facts = gather_facts(bundle)
    diagnosis = diagnose(facts)
    write(layout.DIAGNOSIS, msgspec.json.format(msgspec.json.encode(diagnosis), indent=1) + b"\n")
    unrendered = ""
    try:
        write(layout.REPORT, render(bundle, facts, diagnosis).encode())
    except Exception as error:  # noqa: BLE001 - a bug in the report must not cost the diagnosis its place
        unrendered = f"{type(error).__name__}: {error}"
    return Answers(diagnosis, unrendered, platform.around(facts, bundle))


def diagnosis_of(path: Path) -> Diagnosis:
    """Diagnose a stored bundle.

    Raises:
        AutopsyError: it is no bundle, or not a whole one.
    """
    answer = read_boxed((path,), lambda opened: msgspec.json.encode(diagnose(gather_facts(opened[0]))))
    return msgspec.json.decode(answer, type=Diagnosis)
