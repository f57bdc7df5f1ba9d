"""Writes a line of lldb's `bt all` as gdb writes it."""

from __future__ import annotations

import re

from autopsy.incoming.stacks.thread_line import Header

FRAME = re.compile(r"frame #(\d{1,6}): (0x[0-9a-fA-F]{1,16}) ")
THREAD = re.compile(r"\* ?thread #(\d{1,6})[,:]|thread #(\d{1,6})[,:]")
NAMED = re.compile(r"name = '([^']{0,64})'")
TID = re.compile(r"tid = (0x[0-9a-fA-F]{1,8}|\d{1,10})")
COLUMN = re.compile(r"(:\d{1,9}):\d{1,9}(?: \[opt\])?$")
MOST_TID = 1 << 31


def as_gdb(line: str) -> str:
    """Return `#N  0x… in NAME (…) at FILE:LINE` for a frame of lldb's, empty for any other line."""
    found = FRAME.search(line, 0, 64)
    if found is None:
        return ""
    _, tick, rest = line[found.end() :].partition("`")
    if not tick:
        return ""
    rest = COLUMN.sub(r"\1", rest.removesuffix(" [inlined]").removesuffix(" [opt]"))
    name, _, place = rest.partition(" at ")
    name, _, _ = name.partition(" + ")
    bare, bracket, arguments = name.partition("(")
    arguments = f"({arguments}" if bracket else "()"
    return f"#{found[1]}  {found[2]} in {bare.strip()} {arguments}{f' at {place}' if place else ''}"


def header(line: str) -> Header | None:
    """Return whose stack follows a line `* thread #1, name = 'kvm', stop reason = …`, None for any other."""
    bare = line.strip(" ")
    found = THREAD.match(bare)
    if found is None:
        return None
    tid = TID.search(bare)
    number = int(tid[1], 0) if tid else 0
    name = NAMED.search(bare)
    return Header(int(found[1] or found[2]), number if number < MOST_TID else 0, name[1] if name else "")
