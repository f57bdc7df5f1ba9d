"""Measures text as wide as the widest of the usual fonts draws it, and leaves out the middle of what has no room."""

from __future__ import annotations

# Advance widths of DejaVu Sans in hundredths of the font's size, rounded up; other sans-serif fonts are narrower.
_PLAIN = {
    30: "'IJijl",
    35: " ,./:;\\|",
    40: "()-[]ft",
    45: "!r",
    50: '"*_`',
    55: "?csz",
    60: "FLkvxy",
    65: "0123456789$EPSTYabdeghnopqu{}",
    70: "ABCKRVXZ",
    75: "NU",
    80: "&DGHOQ",
    85: "#+<=>^w~",
    90: "M",
    95: "%",
    100: "@Wm",
}
_BOLD = {
    35: " 'ijl",
    40: ",./:;IJ\\|",
    45: "-f",
    50: "!()[]_`rt",
    55: '"*',
    60: "?csz",
    65: "Lx",
    70: "0123456789$EFTaekovy",
    75: "CPSYZbdghnpqu{}",
    80: "ABKRVX",
    85: "#+<=>DGHNOQU^~",
    90: "&",
    95: "w",
    100: "@M",
    105: "%m",
    115: "W",
}
OTHER = 115  # a letter of another script, or an ellipsis
PLAIN_WIDTHS = {letter: width for width, letters in _PLAIN.items() for letter in letters}
BOLD_WIDTHS = {letter: width for width, letters in _BOLD.items() for letter in letters}


def width_of(text: str, size: float, *, bold: bool = False) -> float:
    """Return how many pixels a text takes at most in letters of that size."""
    widths = BOLD_WIDTHS if bold else PLAIN_WIDTHS
    return sum(widths.get(letter, OTHER) for letter in text) * size / 100


def elide(text: str, room: float, size: float, *, bold: bool = False) -> str:
    """Return the text, without its middle where it is wider than `room`: a path's end says more than its middle."""
    if width_of(text, size, bold=bold) <= room:
        return text
    for left in range(min(len(text) - 1, int(room / (size * 0.3)) + 1), 1, -1):
        head = left // 3
        shorter = f"{text[:head]}…{text[len(text) - (left - head) :]}"
        if width_of(shorter, size, bold=bold) <= room:
            return shorter
    return "…"
