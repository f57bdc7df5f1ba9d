"""Turns a runbook, which is ours, into HTML that fits into the report.

Runbooks are written in a small part of CommonMark: headings, paragraphs, flat lists, indented code; code spans and
strong words. A whole parser takes a twentieth of a capture to load and to read one of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from markupsafe import Markup, escape

from autopsy.diagnose import runbooks

DEEPER = 2  # a runbook's title becomes an h3 below the section's own
LOWEST = 6
HEADING = re.compile(r"(#{1,6}) +(.*)")
ITEM = re.compile(r"(-|\d{1,9}\.) +(?=\S)", re.ASCII)
CODE = "    "
STRONG = re.compile(r"\*\*(\S(?:[^*]*\S)?)\*\*")


def runbook(signature: str) -> Markup | None:
    """Return the runbook of a signature, None where there is none yet."""
    text = runbooks.without_commands(runbooks.text(signature))
    return html(text) if text else None


def html(text: str) -> Markup:
    """Return a runbook's text as HTML, every character of it escaped."""
    blocks = (block.splitlines() for block in re.split(r"\n(?:[ \t]*\n)+", text.strip("\n")) if block.strip())
    return Markup("").join(piece for lines in blocks for piece in _block(lines))


def _block(lines: list[str]) -> Iterator[Markup]:
    """Yield what the lines between two blank ones are, where a heading or a list may begin without one."""
    while lines:
        first = lines[0]
        if heading := HEADING.fullmatch(first):
            level = min(LOWEST, len(heading[1]) + DEEPER)
            yield Markup("<h{}>{}</h{}>\n").format(level, _inline(heading[2].strip()), level)
            lines = lines[1:]
        elif first.startswith(CODE):
            count = next((n for n, line in enumerate(lines) if not line.startswith(CODE)), len(lines))
            code = "".join(f"{line.removeprefix(CODE)}\n" for line in lines[:count])
            yield Markup("<pre><code>{}</code></pre>\n").format(escape(code))
            lines = lines[count:]
        else:
            is_list = bool(ITEM.match(first))
            ends = (
                n
                for n, line in enumerate(lines[1:], 1)
                if HEADING.fullmatch(line) or (ITEM.match(line) and not is_list)
            )
            count = next(ends, len(lines))
            yield _list(lines[:count]) if is_list else Markup("<p>{}</p>\n").format(_paragraph(lines[:count]))
            lines = lines[count:]


def _list(lines: list[str]) -> Markup:
    items: list[list[str]] = []
    for line in lines:
        if item := ITEM.match(line):
            items.append([line[item.end() :]])
        else:
            items[-1].append(line)
    kind = "ul" if lines[0].startswith("-") else "ol"
    inside = Markup("").join(Markup("<li>{}</li>\n").format(_paragraph(item)) for item in items)
    return Markup("<{}>\n{}</{}>\n").format(kind, inside, kind)


def _paragraph(lines: list[str]) -> Markup:
    return _inline("\n".join(line.strip() for line in lines))


def _inline(text: str) -> Markup:
    """Return a line's text with its code spans, and its strong words outside of them."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # the last one is open
        parts[-2:] = ["`".join(parts[-2:])]
    return Markup("").join(
        Markup("<code>{}</code>").format(escape(part)) if place % 2 else _strong(part)
        for place, part in enumerate(parts)
    )


def _strong(text: str) -> Markup:
    pieces = STRONG.split(text)
    return Markup("").join(
        Markup("<strong>{}</strong>").format(escape(piece)) if place % 2 else escape(piece)
        for place, piece in enumerate(pieces)
    )
