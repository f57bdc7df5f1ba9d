"""Unfolds the lines of a log that hold several: a journal's JSON, and what syslog wrote into one line."""

from __future__ import annotations

from typing import Any

import msgspec

MESSAGE, COMMAND = "MESSAGE", "COREDUMP_CMDLINE"
MOST = 4 << 20  # characters of one line that is unfolded
FOLDED = "#012"  # how rsyslog writes a line's end


def unfolded(line: str) -> tuple[str, ...]:
    """Return the lines that one line holds; itself, for any other."""
    if FOLDED in line and "Stack trace of thread " in line:
        return tuple(line[:MOST].split(FOLDED))
    if '"MESSAGE"' in line and line.lstrip(" ").startswith("{"):
        return _entry(line[:MOST]) or (line,)
    return (line,)


def _entry(line: str) -> tuple[str, ...]:
    try:
        entry = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError):
        return ()
    if not isinstance(entry, dict):
        return ()
    text = _text(entry.get(MESSAGE))
    command = _text(entry.get(COMMAND))
    return (*(text.split("\n") if text else ()), *((command,) if command else ()))


def _text(value: Any) -> str:  # noqa: ANN401 - a stranger's JSON
    """Return a field's text, which the journal tells as numbers where it is not UTF-8."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(number, int) and 0 <= number < 256 for number in value):
        return bytes(value).decode("utf-8", "replace")
    return ""
