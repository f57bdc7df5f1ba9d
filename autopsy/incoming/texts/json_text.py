"""Finds whole JSON values in a text, over however many lines each goes."""

from __future__ import annotations

from dataclasses import field
from typing import Any

import msgspec

from autopsy.dataclass import dataclass

MOST_TEXT = 8 << 20  # characters of one value

# After its first bracket: a kernel log's line begins with one, too.
BEGINNINGS = frozenset(("", '"', "{", "[", "}", "]"))


@dataclass(slots=True)
class JsonText:
    """`parts` are the lines of a value that is not whole yet."""

    parts: list[str] = field(default_factory=list)
    size: int = 0
    depth: int = 0
    in_string: bool = False

    def feed(self, line: str) -> Any:  # noqa: ANN401 - JSON, checked by whoever reads it
        """Take one line; return the value that it ends, or None."""
        # ABRT's reports have a colon before each line of a value.
        bare = line.strip(" ").removeprefix(":").strip(" ")
        if not self.parts and (bare[:1] not in {"{", "["} or bare[1:].lstrip(" ")[:1] not in BEGINNINGS):
            return None
        self._count(bare)
        self.parts.append(bare)
        self.size += len(bare)
        if self.depth > 0 and self.size < MOST_TEXT:
            return None
        whole = "\n".join(self.parts)
        self.stop()
        try:
            return msgspec.json.decode(whole)
        except (msgspec.DecodeError, RecursionError):
            return None

    def stop(self) -> None:
        """Give up a value that something else has broken off."""
        self.parts, self.size, self.depth, self.in_string = [], 0, 0, False

    def _count(self, line: str) -> None:
        escaped = False
        for letter in line:
            if self.in_string:
                if escaped:
                    escaped = False
                elif letter == "\\":
                    escaped = True
                elif letter == '"':
                    self.in_string = False
            elif letter == '"':
                self.in_string = True
            elif letter in "{[":
                self.depth += 1
            elif letter in "}]":
                self.depth -= 1
