"""Makes a stranger's text safe to show: every character that the eye cannot see becomes an escape."""

from __future__ import annotations

import re
import unicodedata

# Printable by Unicode's tables, yet blank or without a shape of their own: fillers, Braille's blank, selectors.
UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
# A few accents are a language, a heap of them covers the lines around it.
HEAPED = re.compile(
    "(?<=[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]{2})"
    "[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]"
)


def visible(text: str) -> str:
    r"""Return the text on one line: a line feed becomes `\n`, a right-to-left override `\u202e`."""
    if text.isascii() and text.isprintable():
        return text
    if not text.isprintable():
        text = "".join(letter if letter.isprintable() else _escape(letter) for letter in text)
    return HEAPED.sub(_shown, UNSEEN.sub(_shown, text))


def _shown(match: re.Match[str]) -> str:
    return _escape(match[0])


def _escape(character: str) -> str:
    known = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character)
    if known:
        return known
    number = ord(character)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def plain(text: str) -> str:
    """Return text that a guest may have chosen, with every control and direction character made visible."""
    return "".join(
        character
        if character == " " or unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
        else f"\\u{ord(character):04x}"
        for character in text
    )


MOST = 300


def printable(text: str | bytes, most: int = MOST) -> str:
    """Return the text on one line, without control or escape characters, cut at `most`."""
    if isinstance(text, bytes):
        text = text[: 4 * most].decode("utf-8", "replace")
    cut = text[:most]
    safe = "".join(letter if letter.isprintable() else " " if letter.isspace() else "?" for letter in cut)
    return safe + ("…" if len(text) > most else "")


def of_error(error: BaseException) -> str:
    """Return an exception's kind with its words, safe to print."""
    return printable(f"{type(error).__name__}: {error}".rstrip(": "))
