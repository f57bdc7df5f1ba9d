"""Renders a stored bundle in one of the forms that people and programs read."""

from __future__ import annotations

from pathlib import Path

import msgspec

from autopsy.bundle.reader import Bundle
from autopsy.diagnose.verdict import diagnose
from autopsy.errors import UsageError
from autopsy.facts.gather import gather_facts
from autopsy.files import private
from autopsy.files.plain import NotPlain, open_plain
from autopsy.report.boxed import read_boxed
from autopsy.report.bug_report import bug_report
from autopsy.report.html import compile_templates, html
from autopsy.report.json_document import document, schema
from autopsy.report.post_mortem import post_mortem

FORMATS = ("html", "md", "bug", "json", "schema")


def render(path: Path, format: str, seen: str = "") -> str:  # noqa: A002 - the option's name is a contract
    """Return a bundle's report. `schema` is that of `json`, and reads no bundle.

    `seen` says how often others like it were met; a page and a draft tell it.

    Raises:
        UsageError: there is no such format, or nothing at that path.
        DamagedBundle: it is no bundle, or only part of one.
    """
    if format not in FORMATS:
        raise UsageError(format, "there is no such format", remedy=f"one of {', '.join(FORMATS)}")
    if format == "schema":
        return schema()
    if format == "html":
        compile_templates()  # what is kept of them, the sandbox may not be able to read
    kill = killed(path)
    return read_boxed((path,), lambda opened: _rendered(opened[0], path, format, kill, seen).encode()).decode()


def _rendered(bundle: Bundle, path: Path, format: str, kill: str, seen: str) -> str:  # noqa: A002 - as above
    if format == "html":
        return html(bundle, kill=kill, seen=seen)
    facts = gather_facts(bundle)
    diagnosis = diagnose(facts)
    if format == "md":
        return post_mortem(bundle.manifest, facts, diagnosis, kill=kill, bundle=path.resolve().name, seen=seen)
    if format == "bug":
        return bug_report(bundle.manifest, facts, diagnosis)
    return document(bundle.manifest, diagnosis, kill=kill)


def store(text: str, path: Path) -> None:
    """Write a report where it is wanted: a file whole or not at all, and for its owner alone.

    Raises:
        UsageError: it cannot be written there.
    """
    try:
        private.deliver(path, text.encode())
    except OSError as error:
        raise UsageError(str(path), f"cannot be written: {error.strerror}", remedy="give -o another path") from error


MOST = 1 << 20


class _When(msgspec.Struct, frozen=True):
    utc: str


class _Kill(msgspec.Struct, frozen=True):
    when: _When
    how: str


def killed(bundle: Path) -> str:
    """Return `<UTC>: <how>`, empty where nothing is written down."""
    try:
        with open(open_plain(bundle.with_name(f"{bundle.name}.kill.json")), "rb") as stream:
            kill = msgspec.json.decode(stream.read(MOST), type=_Kill)
    except (OSError, NotPlain, ValueError, msgspec.MsgspecError, RecursionError):
        return ""
    return f"{kill.when.utc}: {kill.how}"
