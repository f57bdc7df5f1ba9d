"""Renders a stored bundle in one of the forms that people and programs read."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import msgspec

from autopsy.bundle.reader import open_bundle
from autopsy.diagnose.verdict import diagnose
from autopsy.errors import UsageError
from autopsy.facts.gather import gather
from autopsy.report.html import html

FORMATS = ("html", "json")


def render(path: Path, format: str) -> str:  # noqa: A002 - the option's name is a contract
    """Return a bundle's report.

    Raises:
        UsageError: there is no such format.
    """
    if format not in FORMATS:
        raise UsageError(format, "there is no such format", remedy=f"one of {', '.join(FORMATS)}")
    bundle = open_bundle(path)
    if format == "html":
        return html(bundle)
    return msgspec.json.format(msgspec.json.encode(diagnose(gather(bundle))), indent=2).decode() + "\n"


def store(text: str, path: Path) -> None:
    """Write a report where it is wanted: whole or not at all, and for its owner alone."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
