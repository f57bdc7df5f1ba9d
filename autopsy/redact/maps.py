"""Redacts a process's memory map by its lines that name something: a VM of many requests has tens of thousands."""

from __future__ import annotations

import re
from collections.abc import Callable

# Addresses, rights, offset, device and inode of memory that no file lies behind.
NAMELESS = re.compile(
    r"[0-9a-f]{8,16}-[0-9a-f]{8,16} [rwxsp-]{4} [0-9a-f]{8,16} [0-9a-f]{2,4}:[0-9a-f]{2,5} \d{1,20} *", re.ASCII
)


def redacted_maps(text: str, redact: Callable[[str], str]) -> str:
    """Return a map of which `redact` has gone through the lines that name something, as one text."""
    lines = text.split("\n")
    named = [line for line in lines if not NAMELESS.fullmatch(line)]
    made = redact("\n".join(named)).split("\n")
    if len(made) != len(named):
        return redact(text)
    left = iter(made)
    return "\n".join(line if NAMELESS.fullmatch(line) else next(left) for line in lines)
