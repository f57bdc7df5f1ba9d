"""Undoes how a mail's transfer wrapped and spelled its lines (quoted-printable), where a text was saved as it came."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

SIGN = b"=3D"  # an equals sign, of which every backtrace with arguments is full
MOST = 1 << 16  # characters of a line that was wrapped
SPELLED = re.compile(r"(?:=[0-9A-F]{2})+")


def undone(lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines as they were written."""
    pending = ""
    for line in lines:
        bare = line.rstrip("\r\n")
        if bare.endswith("=") and len(pending) < MOST:
            pending += bare[:-1]
            continue
        yield SPELLED.sub(_letters, pending + bare)
        pending = ""
    if pending:
        yield SPELLED.sub(_letters, pending)


def _letters(match: re.Match[str]) -> str:
    return bytes.fromhex(match[0].replace("=", "")).decode("utf-8", "replace")
