"""Writes what a folder of evidence says: diagnosis.json and report.html."""

from __future__ import annotations

from pathlib import Path

import msgspec

from autopsy.bundle import names
from autopsy.bundle.reader import open_bundle
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather
from autopsy.report.html import html


def write_diagnosis(folder: Path) -> bytes:
    """Diagnose the evidence in `folder`, store diagnosis.json there and return its bytes."""
    data = msgspec.json.encode(diagnose(gather(open_bundle(folder))))
    (folder / names.DIAGNOSIS).write_bytes(msgspec.json.format(data, indent=1) + b"\n")
    return data


def write_report(folder: Path) -> bytes:
    """Render report.html from the evidence in `folder` and store it there."""
    (folder / names.REPORT).write_text(html(open_bundle(folder)), encoding="utf-8")
    return b""
