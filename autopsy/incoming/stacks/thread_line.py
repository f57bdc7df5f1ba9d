"""Reads the lines that say whose stack follows: a thread's header, or a coroutine that qemu-gdb.py was asked for."""

from __future__ import annotations

from dataclasses import dataclass

from autopsy.incoming.stacks.frame_line import HEX

MOST_TID = 1 << 31
MOST_NAME = 64
KINDS = ("LWP ", "process ", "Thread ", "TID ")


@dataclass(frozen=True, slots=True)
class Header:
    """Whose stack follows. `number` is gdb's own for a thread, `tid` the kernel's, 0 where it is not told."""

    number: int
    tid: int
    name: str = ""
    coroutine: int = 0
    rest: str = ""  # a frame in the same line, as `info threads` prints it


def header(line: str) -> Header | None:
    """Return what a line says of the stack after it, None for any other line."""
    bare = line.strip(" ").rstrip(":")
    lowered = bare[:40].lower()
    if bare.startswith("Thread ") and "(" in bare:
        return _gdb(bare[7:])
    if bare.startswith("Stack trace of thread "):
        return _only(bare[22:])
    if bare.startswith("TID "):
        return _only(bare[4:])
    if bare.startswith(("[Switching to thread ", "[Current thread is ")):
        return _gdb(bare.partition("thread ")[2].removeprefix("is "))
    if "coroutine" in lowered and "0x" in bare and not bare.startswith("#"):
        return _coroutine(bare)
    return _listed(bare)


def _gdb(text: str) -> Header | None:
    """Read `3 (Thread 0x7f.. (LWP 15741) "CPU 0/KVM")` and every older form of it."""
    digits = _digits(text)
    if not digits:
        return None
    tid = _tid(text)
    name = text[text.index('"') + 1 : text.rindex('"')] if text.count('"') > 1 else ""
    return Header(int(digits), tid or 0, name[:MOST_NAME])


def _only(text: str) -> Header | None:
    digits = _digits(text)
    return Header(0, int(digits)) if digits else None


def _coroutine(text: str) -> Header | None:
    """Read `qemu coroutine 0x7f…` as it was typed, and `Coroutine at 0x7f…:` as it is printed."""
    start = text.index("0x") + 2
    end = start
    while end < len(text) and text[end] in HEX:
        end += 1
    return Header(0, 0, coroutine=int(text[start:end], 16)) if 4 <= end - start <= 16 else None


def _listed(text: str) -> Header | None:
    """Read a line of `info threads`: `* 1    Thread 0x7f.. (LWP 15741) "name" poll () at …`."""
    text = text.removeprefix("*").strip(" ")
    digits = _digits(text)
    rest = text[len(digits) :].strip(" ")
    if not digits or not rest.startswith(("Thread 0x", "LWP ", "process ")):
        return None
    tid = _tid(rest)
    if not tid:
        return None
    after = rest.partition(f"LWP {tid}")[2].removeprefix(")").strip(" ") or rest.partition(str(tid))[2].strip(" ")
    name = ""
    if after.startswith('"'):
        name, _, after = after[1:].partition('" ')
    return Header(int(digits), tid, name.rstrip('"')[:MOST_NAME], rest=after.strip(" "))


def _tid(text: str) -> int:
    for kind in ("LWP ", "process "):
        place = text.find(kind)
        if place >= 0 and (digits := _digits(text[place + len(kind) :])):
            return int(digits)
    return 0


def _digits(text: str) -> str:
    end = 0
    while end < min(len(text), 11) and text[end] in "0123456789":
        end += 1
    return text[:end] if 0 < end < 11 and int(text[:end]) < MOST_TID else ""
