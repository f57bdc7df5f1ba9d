"""Lines of a mountinfo, as facts."""

from __future__ import annotations

from collections.abc import Iterator

from autopsy.facts.cite import Cite
from autopsy.facts.model.facts import MountFact

UPPER = "upperdir="


def mounts_told(path: str, at: int, lines: str) -> Iterator[MountFact]:
    """Yield the mounts that lines of a mountinfo tell of; they stand in this file of the bundle from this line on."""
    for offset, line in enumerate(lines.splitlines()):
        left, dash, right = line.partition(" - ")
        place, words = left.split(), right.split()
        if dash and len(place) > 4 and len(words) > 1:
            cite = Cite(path, at + offset, line[:200])
            options = words[2].split(",") if words[0] == "overlay" and len(words) > 2 else ()
            upper = next((option.removeprefix(UPPER) for option in options if option.startswith(UPPER)), "")
            yield MountFact(
                path=_unescape(place[4]),
                fstype=words[0],
                source=words[1],
                cite=cite,
                device=place[2],
                upper=_unescape(upper),
            )


def _unescape(path: str) -> str:
    return path.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
