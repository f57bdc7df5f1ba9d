"""What a pasted text held: stacks, coroutines and printed values, look by look."""

from __future__ import annotations

import msgspec

from autopsy.bundle.records import Coroutine, ThreadStack


class PrintedMutex(msgspec.Struct, frozen=True, kw_only=True):
    """A mutex that somebody had gdb print: the expression as it was typed, and the owner that it showed."""

    expression: str
    owner: int
    kind: int = 0
    count: int = 0


class LockWait(msgspec.Struct, frozen=True, kw_only=True):
    """The mutex that a thread's frames say it waits for: its address and symbol, as far as arguments told them."""

    tid: int
    address: int = 0
    symbol: str = ""


class PastedDump(msgspec.Struct, frozen=True, kw_only=True):
    """One dump: each thread is in it once."""

    threads: tuple[ThreadStack, ...] = ()
    coroutines: tuple[Coroutine, ...] = ()
    waits: tuple[LockWait, ...] = ()


class Paste(msgspec.Struct, frozen=True, kw_only=True):
    """All that was read out of one text. `lines` says how many lines it had, `frames` how many frames were read."""

    looks: tuple[PastedDump, ...] = ()
    printed: tuple[PrintedMutex, ...] = ()
    notes: tuple[str, ...] = ()
    lines: int = 0
    frames: int = 0
    crash: tuple[str, ...] = ()
    program: str = ""
