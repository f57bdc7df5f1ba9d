"""Writes Markdown in which nothing that a guest chose can be more than text."""

from __future__ import annotations

import re
from collections.abc import Iterable

from autopsy.facts.cite import Cite
from autopsy.text import visible

# Whatever begins an emphasis, a link, a tag, an entity, a table cell, a mention or a reference to an issue.
SPECIAL = re.compile(r"(?<![^\W_])_|_(?![^\W_])|[\\`*\[\]<>|~#!&]|@(?=\w)")
TICKS = re.compile(r"`+")
MOST_CITES = 4
BAR = re.compile(r"(?<!\\)\|")
BACKSLASH_BAR = r"\\|"


def plain(text: str) -> str:
    """Return a text that shows as itself."""
    return SPECIAL.sub(lambda match: "&#64;" if match[0] == "@" else "\\" + match[0], visible(text))


def code(text: str) -> str:
    """Return a text as code on one line."""
    text = visible(text)
    fence = "`" * (1 + max((len(ticks[0]) for ticks in TICKS.finditer(text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") or not text else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def ours(text: str) -> str:
    """Return one of our sentences, in which commands stand between backticks."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # a name in it holds a backtick: then none of them is ours for sure
        return plain(text)
    return "".join(code(part) if place % 2 else plain(part) for place, part in enumerate(parts) if part)


def block(lines: Iterable[str]) -> str:
    """Return lines as a code block that none of them can end."""
    shown = [visible(line.expandtabs(8)) for line in lines]
    longest = max((len(ticks[0]) for line in shown for ticks in TICKS.finditer(line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join((fence, *shown, fence))


def link(address: str) -> str:
    """Return an address as a link with a space ahead of it, nothing where there is none."""
    return f" <{address}>" if address else ""


def cited(cites: Iterable[Cite]) -> str:
    """Return ` (`witness/tasks.txt:328`)`, empty without cites."""
    places = tuple(
        dict.fromkeys(cite.file.removeprefix("evidence/") + (f":{cite.line}" if cite.line else "") for cite in cites)
    )
    more = f" and {len(places) - MOST_CITES} more" if len(places) > MOST_CITES else ""
    return f" ({', '.join(map(code, places[:MOST_CITES]))}{more})" if places else ""


def row(*cells: str) -> str:
    """Return a row of a table; the cells are Markdown already. A bar inside of code is escaped in a table alone."""
    return f"| {' | '.join(BAR.sub(BACKSLASH_BAR, cell) for cell in cells)} |"


def folded(title: str, lines: Iterable[str]) -> Iterable[str]:
    """Yield lines that are shown only to whoever asks for them, nothing where there are none."""
    inside = tuple(lines)
    if inside:
        yield from (f"<details><summary>{title}</summary>", "", *inside, "", "</details>", "")
