"""Makes words from outside safe to print on a terminal."""

from __future__ import annotations

MOST = 300


def printable(text: str | bytes, most: int = MOST) -> str:
    """Return the text on one line, without control or escape characters, cut at `most`."""
    if isinstance(text, bytes):
        text = text[: 4 * most].decode("utf-8", "replace")
    cut = text[:most]
    safe = "".join(each if each.isprintable() else " " if each.isspace() else "?" for each in cut)
    return safe + ("…" if len(text) > most else "")


def of_error(error: BaseException) -> str:
    """Return an exception's kind with its words, safe to print."""
    return printable(f"{type(error).__name__}: {error}".rstrip(": "))
