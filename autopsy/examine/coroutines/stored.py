"""Coroutines as the bundle stores them, written and read back: there may be 10,000 that stand in few places."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from io import BytesIO

import msgspec

from autopsy.bundle.records import Coroutine, Frame


def as_text(coroutines: Iterable[Coroutine]) -> bytes:
    """Return them as indented JSON, as all evidence is, made one by one: the whole of it is held once."""
    text = BytesIO()
    text.write(b"[")
    for coroutine in coroutines:
        text.write(b"\n " if text.tell() == 1 else b",\n ")
        text.write(msgspec.json.format(msgspec.json.encode(coroutine), indent=1).replace(b"\n", b"\n "))
    text.write(b"]\n" if text.tell() == 1 else b"\n]\n")
    return text.getvalue()


def read_back(stored: bytes) -> tuple[Coroutine, ...]:
    """Return what `as_text` made, each stack held once for all that share it.

    Raises:
        msgspec.DecodeError: it is something else.
    """
    return tuple(_shared(msgspec.json.decode(stored, type=list[msgspec.Raw])))


def _shared(pieces: list[msgspec.Raw]) -> Iterator[Coroutine]:
    known: dict[tuple[Frame, ...], tuple[Frame, ...]] = {}
    for piece in pieces:
        coroutine = msgspec.json.decode(piece, type=Coroutine)
        yield msgspec.structs.replace(coroutine, frames=known.setdefault(coroutine.frames, coroutine.frames))
