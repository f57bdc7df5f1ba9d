"""What a bundle must be able to do to be turned into facts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeVar

import msgspec

from autopsy.bundle import sections
from autopsy.bundle.layout import evidence as path_of
from autopsy.bundle.manifest import Manifest
from autopsy.facts.cite import Cite, Fact, Known, Unknown

R = TypeVar("R")


class Evidence(Protocol):
    """One bundle, sealed or still staged, in memory or on disk."""

    @property
    def manifest(self) -> Manifest:
        """Return what manifest.json says."""

    def read(self, path: str) -> bytes:
        """Return a file's bytes, empty when it is not there."""

    def names(self) -> tuple[str, ...]:
        """Return the paths of every file."""


def missing(evidence: Evidence, step: str, file: str) -> Unknown:
    """Say which evidence is not there, in the words of the step that should have left it."""
    for record in evidence.manifest.steps:
        if record.name == step:
            ending = f": {record.why}" if record.why else ""
            if record.outcome == "Collected":
                return Unknown(path_of(step, file), f"{step} left no {file}")
            return Unknown(path_of(step, file), f"{step} {record.outcome}{ending}")
    return Unknown(path_of(step, file), f"{step} was not part of this capture")


def records(evidence: Evidence, step: str, file: str, kind: type[R]) -> Fact[R]:
    """Decode one JSON file strictly; damage and absence are both Unknown."""
    path = path_of(step, file)
    data = evidence.read(path)
    if not data:
        return missing(evidence, step, file)
    try:
        return Known(msgspec.json.decode(data, type=kind), Cite(path))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return Unknown(path, f"damaged: {error}")


def lines(evidence: Evidence, step: str, file: str, kind: type[R]) -> Iterator[tuple[int, R]]:
    """Yield each line of a JSON-lines file with its number, leaving out those that are damaged."""
    for number, line in enumerate(evidence.read(path_of(step, file)).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            yield number, msgspec.json.decode(line, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue


def section_map(evidence: Evidence, step: str, file: str) -> dict[str, sections.Section]:
    """Return a sectioned file by section name; the first of two same names counts."""
    by_name: dict[str, sections.Section] = {}
    for section in sections.parse(evidence.read(path_of(step, file))):
        by_name.setdefault(_sayable(section.name), section)
    return by_name


def _sayable(name: str) -> str:
    """Return a name that can be written as JSON: a path may hold any byte."""
    return name if name.isascii() else name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def text(section: sections.Section) -> str:
    """Return a section's bytes as text that can be shown."""
    return section.data.decode("utf-8", "replace")
