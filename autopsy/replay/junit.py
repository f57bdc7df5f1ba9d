"""Writes replayed cases as JUnit XML, which every CI reads."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree as ET

from autopsy.errors import UsageError
from autopsy.files import private
from autopsy.replay.replay import Replayed, lines

SUITE = "autopsy replay"
# Everything that XML 1.0 cannot hold, not even escaped; a guest may have put it into a name.
UNSPEAKABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(replayed: Iterable[Replayed]) -> bytes:
    """Return the cases as one test suite: a changed verdict is a failure, a case without a verdict an error."""
    cases = tuple(replayed)
    suite = ET.Element(
        "testsuite",
        name=SUITE,
        tests=str(len(cases)),
        failures=str(sum(not case.passed and not case.error for case in cases)),
        errors=str(sum(bool(case.error) for case in cases)),
        skipped="0",
        time=f"{sum(case.seconds for case in cases):.3f}",
    )
    for case in cases:
        place, _, name = case.name.rpartition("/")
        element = ET.SubElement(
            suite,
            "testcase",
            classname=_said(place.replace("/", ".") or SUITE),
            name=_said(name),
            time=f"{case.seconds:.3f}",
        )
        if case.error:
            _add(element, "error", case.error.partition("\n")[0], case.error)
        elif not case.passed:
            first = case.changes[0]
            _add(element, "failure", f"{first.what}: {first.old} → {first.new}", "\n".join(lines(case)))
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def write_junit(path: Path, replayed: Iterable[Replayed]) -> None:
    """Write the file.

    Raises:
        UsageError: it cannot be written there.
    """
    try:
        private.deliver(path, junit(replayed))
    except OSError as error:
        raise UsageError(
            str(path), f"cannot be written: {error.strerror}", remedy="give --junit another path"
        ) from error


def _add(element: ET.Element, kind: str, message: str, text: str) -> None:
    ET.SubElement(element, kind, message=_said(message)).text = _said(text)


def _said(text: str) -> str:
    return UNSPEAKABLE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)
