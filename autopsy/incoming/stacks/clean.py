"""Takes from one pasted line what a terminal, a mail, a pager or a web page put around it."""

from __future__ import annotations

import html
import re

MOST_LINE = 16 << 10  # characters: longer lines are cut, and told

# Its classes are disjoint: no position is looked at twice.
ANSI = re.compile(r"\x1b(?:\[[0-9;:?]*[@-~]|\][^\x07\x1b]*\x07?|[@-Z\\^_])")
# What is left of it where a web page or a mail kept the signs that print, and lost the escape.
COLOURS = re.compile(r"\[\d{1,2}(?:;\d{1,3}){0,4}m|(?<=\w)\[m")
PAGER = (
    "--Type <RET> for more, q to quit, c to continue without paging--",
    "---Type <return> to continue, or q <return> to quit---",
    "--Type <return> for more, q to quit, c to continue without paging--",
)
TAGS = ("<pre>", "</pre>", "<code>", "</code>", "<br>", "<br/>", "<br />", "<p>", "</p>", "<span>", "</span>")
PYTHON = "Python Exception <"
BOARD = re.compile(r"\[/?(?:code|quote|pre|font|color)(?:=[^\]]{0,40})?\]", re.IGNORECASE)
FENCES = ("```", "~~~", "{noformat", "{code")
PROMPT = "(gdb)"


def clean(line: str) -> str:
    """Return the line as the debugger printed it, empty for one that is only somebody's mark-up.

    What stands in front of it goes: quoting, a prompt, a line's number. What gdb's Python said in its middle goes too.
    """
    line = line[:MOST_LINE].replace("\xa0", " ").replace("\t", "    ")
    line = _uncoloured(line)
    for prompt in PAGER:
        if prompt in line:
            line = line.replace(prompt, "")
    line = line.rstrip("\r\n \x08")
    line = line.rpartition("\r")[2]
    line = _unquoted(line)
    if line.startswith(FENCES):
        return ""
    line = _without_tags(line)
    while line.startswith(PROMPT):
        line = line[len(PROMPT) :].lstrip(" ")
    return _unnumbered(line)


def _uncoloured(line: str) -> str:
    if "\x1b" in line:
        line = ANSI.sub("", line)
    return COLOURS.sub("", line)


def _without_tags(line: str) -> str:
    if "[" in line:
        line = BOARD.sub("", line)
    if "&" in line and ";" in line:
        line = html.unescape(line).replace("\xa0", " ")
    if "<" in line:
        for tag in TAGS:
            line = line.replace(tag, "")
        line = line.partition(PYTHON)[0]
    return line


def _unquoted(line: str) -> str:
    """Return the line without `> > `, which may follow blanks, and with the blanks that the debugger wrote."""
    while True:
        bare = line.lstrip(" ")
        if bare.startswith(">"):
            line = bare[1:].removeprefix(" ")
        elif bare.startswith("| "):
            line = bare[2:]
        else:
            return line


def _unnumbered(line: str) -> str:
    """Return the line without a number that an editor, a web page or a journal put before a frame."""
    place = line.find("#")
    if place <= 0 or not line[place + 1 : place + 2].isdigit():
        return line
    before = line[:place].strip(" ")
    if not before:
        return line[place:]
    if before.rstrip(":.)|").isdecimal() or (before.endswith(":") and "(" not in before and "=" not in before):
        return line[place:]
    return line
