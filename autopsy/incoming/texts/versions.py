"""Reads which QEMU it was: from libvirt's log, the monitor's greeting, and what `--version` prints."""

from __future__ import annotations

import re
from dataclasses import field
from typing import Any

from autopsy.dataclass import dataclass

MOST = 20
SAID = re.compile(
    r"(?:QEMU emulator version |starting up libvirt version: .{0,200}?\bqemu version: |^QEMU (?=\d[\d.]+ monitor - ))"
    r"(\d{1,3}\.[\w.+~:-]{1,60}(?: \([^()]{1,80}\))?)"
)


@dataclass(slots=True)
class Versions:
    """The versions met so far; of a log with several starts, the last one's."""

    found: dict[str, None] = field(default_factory=dict)
    current: str = ""

    def feed(self, line: str) -> None:
        """Take one line."""
        if ("QEMU " in line or "qemu version: " in line) and (said := SAID.search(line)):
            self.current = said[1]

    def take(self, value: Any) -> None:  # noqa: ANN401 - a stranger's JSON
        """Take a greeting of QMP's, or an answer to query-version."""
        for key in ("QMP", "version", "return"):
            if isinstance(value, dict) and isinstance(value.get(key), dict):
                value = value[key]
        version = value.get("qemu") if isinstance(value, dict) else None
        if not isinstance(version, dict):
            return
        numbers = [version.get(key) for key in ("major", "minor", "micro")]
        if all(isinstance(number, int) and 0 <= number < 1000 for number in numbers):
            package = value.get("package")
            words = f" ({package[:80]})" if isinstance(package, str) and package else ""
            self.current = ".".join(map(str, numbers)) + words

    def end(self) -> None:
        """Keep what this file said last."""
        if self.current and len(self.found) < MOST:
            self.found[self.current] = None
        self.current = ""

    @property
    def only(self) -> str:
        """Return the version, empty where nobody told it, or not all told the same."""
        self.end()
        numbers = {version.partition(" ")[0] for version in self.found}
        return max(self.found, key=len) if len(numbers) == 1 else ""
