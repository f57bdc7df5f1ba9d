"""What the VM's control groups let it read and write: cgroup v2's io.max, and v1's blkio.throttle files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Literal

from autopsy.bundle import layout
from autopsy.bundle.sections import Section
from autopsy.facts.cite import Cite, Fact, Known, Unknown
from autopsy.facts.evidence import text
from autopsy.facts.model.facts import IoLimit
from autopsy.facts.threads import int_of

PATH = layout.evidence(layout.HOST, layout.HOST_FILES)
FILE = re.compile(r"(?P<group>/.*)/(?:io\.max|blkio\.throttle\.(?P<kind>read|write)_(?P<unit>bps|iops)_device)")
DEVICE = re.compile(r"\d+:\d+")
UNITS: dict[str, Literal["bytes", "requests"]] = {"bps": "bytes", "iops": "requests"}
KINDS: dict[str, Literal["read", "write"]] = {"r": "read", "w": "write", "read": "read", "write": "write"}


def gather_io_limits(sections: Mapping[str, Section], absent: Unknown) -> Fact[tuple[IoLimit, ...]]:
    """Return every limit that is set, from the VM's own groups up to the top."""
    files = [
        (section, file) for name, section in sections.items() if (file := FILE.fullmatch(name)) and not section.error
    ]
    if not files:
        return Unknown(PATH, "it has no io.max and no blkio.throttle file") if sections else absent
    limits = tuple(limit for section, file in files for limit in _limits(section, file))
    return Known(limits, Cite(PATH, files[0][0].line, files[0][0].name))


def _limits(section: Section, file: re.Match[str]) -> Iterator[IoLimit]:
    for offset, line in enumerate(text(section).splitlines()):
        device, _, rest = line.partition(" ")
        if not DEVICE.fullmatch(device):
            continue
        cite = Cite(PATH, section.line + offset, f"{section.name}: {line}")
        # v1 has a file for each kind, v2 all of them in one line: "8:0 rbps=max wbps=1000 riops=max wiops=120"
        pairs = [(file["kind"], file["unit"], rest)] if file["kind"] else _pairs(rest)
        for kind, unit, word in pairs:
            value = int_of(word.strip())
            if value and kind in KINDS and unit in UNITS:
                yield IoLimit(device, KINDS[kind], UNITS[unit], value, file["group"], cite)


def _pairs(words: str) -> list[tuple[str, str, str]]:
    pairs = (word.partition("=") for word in words.split())
    return [(key[:1], key[1:], value) for key, _, value in pairs]
