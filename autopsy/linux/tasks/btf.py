"""Looks up the kernel's own types by name: where the members of a structure lie, and the number of a function.

Documentation/bpf/btf.rst. Only what a program that walks tasks needs is understood.
"""

from __future__ import annotations

import struct
from bisect import bisect_left

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
    """The types of one kernel.

    Raises:
        OddTypes: they are damaged.
    """

    def __init__(self, raw: bytes) -> None:
        try:
            magic, _, _, header, types, length, strings, size = HEADER.unpack_from(raw)
            if magic != MAGIC or length % 4 or header + types + length > len(raw) or header + strings + size > len(raw):
                raise OddTypes("it is not in the form that this processor writes")
            self._strings = raw[header + strings : header + strings + size]
            self._types = raw[header + types : header + types + length]
            self._words = memoryview(self._types).cast("I")
            self._places = self._walk()
        except (struct.error, IndexError, TypeError) as error:
            raise OddTypes("it is cut short") from error

    def _walk(self) -> list[int]:
        """Return where each type's record begins, by number; there is no number 0."""
        words, length = [3 + ONCE.get(kind, 0) for kind in range(32)], [EACH.get(kind, 0) for kind in range(32)]
        places = [0]
        at, end = 0, len(self._words)
        while at < end:
            places.append(at)
            info = self._words[at + 1]
            kind = info >> 24 & 31
            at += words[kind] + length[kind] * (info & 0xFFFF)
        return places

    def number(self, kind: int, name: str) -> int:
        """Return the number of the first type of this kind and name.

        Raises:
            OddTypes: there is none.
        """
        wanted = self._strings.find(b"\0" + name.encode() + b"\0") + 1
        if wanted:
            word = struct.pack("<I", wanted)
            at = self._types.find(word)
            while at >= 0:
                number = bisect_left(self._places, at // 4, lo=1)
                begins = at % 4 == 0 and number < len(self._places) and self._places[number] == at // 4
                if begins and self._words[at // 4 + 1] >> 24 & 31 == kind:
                    return number
                at = self._types.find(word, at + 1)
        raise OddTypes(f"this kernel has no {name}")

    def offset(self, number: int, member: str) -> int:
        """Return the byte at which a member of a structure lies, be it in an anonymous one inside.

        Raises:
            OddTypes: there is none.
        """
        found = self._offset(number, member.encode(), depth=8)
        if found is None:
            raise OddTypes(f"a structure of this kernel has no member {member}")
        return found

    def _offset(self, number: int, member: bytes, depth: int) -> int | None:
        words = self._words
        try:
            at = self._places[number]
            info = words[at + 1]
            if info >> 24 & 31 not in {STRUCT, UNION} or not depth:
                return None
            for index in range(info & 0xFFFF):
                name, kind, place = words[at + 3 + 3 * index : at + 6 + 3 * index]
                here = (place & 0xFFFFFF if info >> 31 else place) // 8
                if self._strings[name : name + len(member) + 1] == member + b"\0":
                    return here
                if not name and (inner := self._offset(self._plain(kind), member, depth - 1)) is not None:
                    return here + inner
        except (IndexError, ValueError) as error:
            raise OddTypes("a structure is cut short") from error
        return None

    def _plain(self, number: int) -> int:
        for _ in range(8):
            at = self._places[number]
            if self._words[at + 1] >> 24 & 31 not in {TYPEDEF, VOLATILE, CONST, RESTRICT, TAG}:
                break
            number = self._words[at + 2]
        return number
