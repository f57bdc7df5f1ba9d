"""Looks up the kernel's own types by name: where the members of a structure lie, and the number of a function.

Documentation/bpf/btf.rst. Only what a program that walks tasks needs is understood.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from itertools import islice

MAGIC = 0xEB9F
HEADER = struct.Struct("<HBBIIIII")
STRUCT, UNION, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNCTION, TAG = 4, 5, 8, 9, 10, 11, 12, 18
# Words that follow the three of every record: some once, some for each of its `vlen`.
ONCE = {1: 1, 3: 3, 14: 1, 17: 1}
EACH = {4: 3, 5: 3, 6: 2, 13: 2, 15: 3, 19: 3}
MOST_BYTES = 64 << 20


class OddTypes(Exception):
    """The type information is not what this module understands, or lacks a name."""


class Types:
    """The types of one kernel: bytes, or a mapping of its file.

    A kernel has some hundred thousand, of which a few are asked for: they are found by their names' places, and the
    records are gone through only as far as one must be counted.

    Raises:
        OddTypes: they are damaged.
    """

    def __init__(self, raw: bytes | mmap.mmap) -> None:
        try:
            magic, _, _, header, types, length, strings, size = HEADER.unpack_from(raw)
        except struct.error as error:
            raise OddTypes("it is cut short") from error
        if magic != MAGIC or length % 4 or header + types + length > len(raw) or header + strings + size > len(raw):
            raise OddTypes("it is not in the form that this processor writes")
        self._raw = raw
        self._strings = header + strings, header + strings + size
        self._types = header + types, header + types + length
        try:
            self._words = memoryview(raw)[slice(*self._types)].cast("I")
        except TypeError as error:
            raise OddTypes("it is cut short") from error

    def number(self, kind: int, name: str) -> int:
        """Return the number of the first type of this kind and name.

        Raises:
            OddTypes: there is none.
        """
        wanted = self.place(kind, name)
        for number, at in enumerate(self._records(), 1):
            if at >= wanted:
                if at == wanted:
                    return number
                break
        raise OddTypes(f"this kernel has no {name}")

    def place(self, kind: int, name: str) -> int:
        """Return the word at which the record of the first type of this kind and name begins.

        Raises:
            OddTypes: there is none.
        """
        raw, (strings, ends) = self._raw, self._strings
        named: int = raw.find(b"\0" + name.encode() + b"\0", strings, ends) + 1
        if named:
            word = struct.pack("<I", named - strings)
            start, end = self._types
            at: int = raw.find(word, start, end)
            while at >= 0:
                # In the middle of a record the next word is the number of a type, and there are not so many.
                if (at - start) % 4 == 0 and at + 8 <= end and self._words[(at - start) // 4 + 1] >> 24 & 31 == kind:
                    return int(at - start) // 4
                at = raw.find(word, at + 1, end)
        raise OddTypes(f"this kernel has no {name}")

    def offset(self, place: int, member: str) -> int:
        """Return the byte at which a member of a structure lies, be it in an anonymous one inside.

        Raises:
            OddTypes: there is none.
        """
        offset = self._offset(place, member.encode() + b"\0", depth=8)
        if offset is None:
            raise OddTypes(f"a structure of this kernel has no member {member}")
        return offset

    def _offset(self, at: int, member: bytes, depth: int) -> int | None:
        words, raw, strings = self._words, self._raw, self._strings[0]
        inside: list[tuple[int, int]] = []
        try:
            info = words[at + 1]
            if info >> 24 & 31 not in {STRUCT, UNION} or not depth:
                return None
            for index in range(info & 0xFFFF):
                name, kind, bits = words[at + 3 + 3 * index : at + 6 + 3 * index]
                here = (bits & 0xFFFFFF if info >> 31 else bits) // 8
                if name and raw[strings + name : strings + name + len(member)] == member:
                    return here
                if not name:
                    inside.append((kind, here))
            for kind, here in inside:
                if (inner := self._offset(self._plain(kind), member, depth - 1)) is not None:
                    return here + inner
        except (IndexError, ValueError) as error:
            raise OddTypes("a structure is cut short") from error
        return None

    def _plain(self, number: int) -> int:
        """Return the place of a type without what qualifies it."""
        at = self._numbered(number)
        for _ in range(8):
            if self._words[at + 1] >> 24 & 31 not in {TYPEDEF, VOLATILE, CONST, RESTRICT, TAG}:
                break
            at = self._numbered(self._words[at + 2])
        return at

    def _numbered(self, number: int) -> int:
        """Return the place of a type by its number; there is no number 0."""
        for at in islice(self._records(), max(0, number - 1), None):
            return at
        raise IndexError(number)

    def _records(self) -> Iterator[int]:
        """Yield where each type's record begins, in the order of their numbers."""
        words, end = self._words, len(self._words)
        once, per_member = [3 + ONCE.get(kind, 0) for kind in range(32)], [EACH.get(kind, 0) for kind in range(32)]
        at = 0
        while at < end - 1:
            yield at
            info = words[at + 1]
            kind = info >> 24 & 31
            at += once[kind] + per_member[kind] * (info & 0xFFFF)
