"""Read what naming an address needs of an ELF64 file, trusting nothing in it.

It reads 19,000 symbols in some 10 ms, where a general reader needs a second; a binary out of a stranger's bundle cannot
make it raise anything but ElfError, loop, or allocate without bound.
"""

from __future__ import annotations

import lzma
import mmap
import os
import struct
from bisect import bisect_right
from functools import cached_property
from pathlib import Path

from autopsy.dataclass import dataclass
from autopsy.linux.regular import open_regular

EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
PHDR = struct.Struct("<IIQQQQQQ")
SHDR = struct.Struct("<IIQQQQIIQQ")
SYM = struct.Struct("<IBBHQQ")
NHDR = struct.Struct("<III")

PT_LOAD = 1
PT_NOTE = 4
NT_GNU_BUILD_ID = 3
SHT_NOBITS = 8
SHT_SYMTAB = 2
SHT_DYNSYM = 11
FUNCTIONS = frozenset((2, 10))  # STT_FUNC, STT_GNU_IFUNC
OBJECT = 1  # STT_OBJECT; thread-local ones are offsets, not addresses
MOST_SYMBOLS = 4_000_000
MOST_STRING = 4096
MOST_PLACES = 64  # where one name lies in a string table, alone or as a tail
MOST_SECTION = 1 << 30
MOST_MINI = 64 << 20  # a .gnu_debugdata unpacks to a few MB
MINI_START = b"\xfd7zXZ"


class ElfError(Exception):
    """The bytes are no ELF64 file that can be read."""


@dataclass(frozen=True, slots=True)
class LoadSegment:
    """One PT_LOAD."""

    address: int
    size: int
    stored: int
    offset: int
    executable: bool
    writable: bool


@dataclass(frozen=True, slots=True)
class ElfSection:
    """One section's place; `name` is what the section header string table calls it."""

    name: str
    index: int
    kind: int
    address: int
    offset: int
    size: int
    link: int


@dataclass(frozen=True, slots=True)
class Symbol:
    """One named range; `size` is 0 where the file does not tell it."""

    address: int
    size: int
    name: str

    def covers(self, address: int) -> bool:
        """Return whether the address lies in the symbol: a static function behind it does not bear its name."""
        return self.address <= address < self.address + max(self.size, 1)


class SymbolTable:
    """Symbols sorted by address; names are decoded when they are asked for."""

    def __init__(self, entries: list[tuple[int, int, int]], strings: bytes) -> None:
        entries.sort()
        self._entries = entries
        self._strings = strings
        self._addresses = [address for address, _, _ in entries]

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def strings(self) -> bytes:
        """Return the names, each ended by NUL."""
        return self._strings

    def shifted(self, by: int) -> list[tuple[int, int, int]]:
        """Return the entries for a table whose strings come after `by` others."""
        return [(address, size, place + by) for address, size, place in self._entries]

    def at(self, address: int) -> Symbol | None:
        """Return the closest symbol at or below the address; of several there, the plainest name that covers it."""
        last = bisect_right(self._addresses, address)
        if not last:
            return None
        first = last - 1
        while first > 0 and last - first < 16 and self._addresses[first - 1] == self._addresses[last - 1]:
            first -= 1
        candidates = [self._symbol(index) for index in range(first, last)]
        return min(candidates, key=lambda symbol: (not symbol.covers(address), _plainness(symbol.name)))

    def named(self, name: str) -> tuple[Symbol, ...]:
        """Return every symbol of that name."""
        wanted = name.encode() + b"\0"
        symbols: list[Symbol] = []
        position = self._strings.find(wanted)
        for _ in range(MOST_PLACES):
            if position < 0:
                break
            # A string table may keep a name as the tail of a longer one: only a symbol that begins here bears it.
            symbols += [self._symbol(index) for index in self._by_place.get(position, ())]
            position = self._strings.find(wanted, position + 1)
        return tuple(symbols)

    @cached_property
    def _by_place(self) -> dict[int, list[int]]:
        places: dict[int, list[int]] = {}
        for index, (_, _, place) in enumerate(self._entries):
            places.setdefault(place, []).append(index)
        return places

    def _symbol(self, index: int) -> Symbol:
        address, size, place = self._entries[index]
        end = self._strings.find(b"\0", place, place + MOST_STRING)
        name = self._strings[place : end if end >= 0 else place + MOST_STRING]
        return Symbol(address, size, name.decode("utf-8", "replace").split("@", 1)[0])


def _plainness(name: str) -> tuple[int, int, str]:
    return len(name) - len(name.lstrip("_")), len(name), name


class Elf:
    """One ELF file: an executable, a library, or its separate debug file."""

    def __init__(self, source: Path | bytes) -> None:
        self._data = data = source if isinstance(source, bytes) else _map(source)
        if len(data) < EHDR.size or data[:6] != b"\x7fELF\x02\x01":
            raise ElfError("not a little-endian ELF64 file")
        fields = EHDR.unpack(data[: EHDR.size])
        self.machine = int(fields[2])
        segments, notes = program_headers(data)
        self.segments = segments
        self.sections = _sections(data, at=fields[6], count=fields[12], names_in=fields[13])
        self.build_id = ""
        places = [(offset, size) for _, offset, size in notes]
        places += [
            (section.offset, section.size) for section in self.sections.values() if section.name == ".note.gnu.build-id"
        ]
        for offset, size in places:
            self.build_id = self.build_id or build_id_in(data[offset : offset + min(size, 1 << 16)])

    @property
    def has_dwarf(self) -> bool:
        """Return whether the file itself holds line and type information."""
        return any(
            self.sections[name].kind != SHT_NOBITS for name in (".debug_info", ".zdebug_info") if name in self.sections
        )

    @property
    def has_symtab(self) -> bool:
        """Return whether the file names its static functions."""
        return ".symtab" in self.sections and self.sections[".symtab"].kind == SHT_SYMTAB

    @cached_property
    def has_dynsym(self) -> bool:
        """Return whether the file names functions that it exports: one that was not linked for modules names none."""
        place = self.sections.get(".dynsym")
        if place is None or place.kind != SHT_DYNSYM:
            return False
        table = self._section(place)
        rows = SYM.iter_unpack(table[: len(table) // SYM.size * SYM.size])
        return any(section and value and info & 15 in FUNCTIONS for _, info, _, section, value, _ in rows)

    @cached_property
    def imports(self) -> bytes:
        """Return the names, each between NULs, that the file looks for in others, among those it exports."""
        place = self.sections.get(".dynstr")
        return self._section(place) if place else b""

    @property
    def functions(self) -> SymbolTable:
        """Return the functions that .symtab, .gnu_debugdata and .dynsym name."""
        return self._tables[0]

    @property
    def objects(self) -> SymbolTable:
        """Return the variables that they name."""
        return self._tables[1]

    @cached_property
    def unwind_starts(self) -> list[int]:
        """Return, sorted, the addresses at which .eh_frame_hdr says that functions start."""
        place = self.sections.get(".eh_frame_hdr")
        if place is None or place.kind == SHT_NOBITS:
            return []
        data = self._data[place.offset : place.offset + place.size]
        if (
            data[:4] != b"\x01\x1b\x03\x3b"
        ):  # version 1; a table of sdata4 relative to this section, as every linker writes
            return []
        (count,) = struct.unpack_from("<I", data, 8) if len(data) >= 12 else (0,)
        table = data[12 : 12 + min(count, (len(data) - 12) // 8) * 8]
        return sorted(place.address + start for start, _ in struct.iter_unpack("<ii", table))

    def read(self, address: int, size: int) -> bytes:
        """Return bytes of the file as they are mapped at an address of its own; fewer where the file holds fewer."""
        for segment in self.segments:
            if segment.address <= address < segment.address + segment.stored:
                left = segment.address + segment.stored - address
                place = segment.offset + address - segment.address
                return self._data[place : place + min(size, left)]
        return b""

    @cached_property
    def _tables(self) -> tuple[SymbolTable, SymbolTable]:
        strings = b"\0"
        functions: list[tuple[int, int, int]] = []
        objects: list[tuple[int, int, int]] = []
        for name in (".symtab", ".dynsym"):
            place = self.sections.get(name)
            if place is None or place.kind not in (SHT_SYMTAB, SHT_DYNSYM):
                continue
            linked = [section for section in self.sections.values() if section.index == place.link]
            if not linked:
                continue
            _symbols(self._section(place), len(strings), functions, objects)
            strings += self._section(linked[0]) + b"\0"
            if name == ".symtab" and functions:
                break  # .dynsym says nothing that .symtab does not
        if mini := self._mini():
            functions += mini.functions.shifted(len(strings))
            strings += mini.functions.strings
        return SymbolTable(functions, strings), SymbolTable(objects, strings)

    def _mini(self) -> Elf | None:
        """Return the file inside .gnu_debugdata: how Fedora and RHEL keep the names of static functions."""
        place = self.sections.get(".gnu_debugdata")
        if place is None:
            return None
        packed = self._section(place)
        if not packed.startswith(MINI_START):
            return None
        try:
            return Elf(lzma.LZMADecompressor(memlimit=MOST_MINI).decompress(packed, MOST_MINI))
        except (lzma.LZMAError, ElfError, EOFError):
            return None

    def _section(self, place: ElfSection) -> bytes:
        if place.kind == SHT_NOBITS:
            return b""
        return self._data[place.offset : place.offset + min(place.size, MOST_SECTION)]


def program_headers(data: mmap.mmap | bytes) -> tuple[tuple[LoadSegment, ...], tuple[tuple[int, int, int], ...]]:
    """Return the PT_LOADs and the (address, offset, size) of the PT_NOTEs of a file, or of its first page."""
    if len(data) < EHDR.size:
        return (), ()
    fields = EHDR.unpack(data[: EHDR.size])
    at, count = fields[5], fields[10]
    if fields[9] != PHDR.size:
        return (), ()
    there = max(0, len(data) - at) // PHDR.size
    segments: list[LoadSegment] = []
    notes: list[tuple[int, int, int]] = []
    table = data[at : at + min(count, there) * PHDR.size]
    for kind, flags, offset, address, _, stored, size, _ in PHDR.iter_unpack(table):
        if kind == PT_LOAD:
            segments.append(LoadSegment(address, size, stored, offset, bool(flags & 1), bool(flags & 2)))
        elif kind == PT_NOTE:
            notes.append((address, offset, stored))
    return tuple(segments), tuple(notes)


def build_id_in(notes: bytes) -> str:
    """Return the GNU build-id among a segment's notes, as hex, empty when there is none."""
    position = 0
    while position + NHDR.size <= len(notes):
        name_size, size, kind = NHDR.unpack_from(notes, position)
        name_at = position + NHDR.size
        body_at = name_at + (name_size + 3 & ~3)
        position = body_at + (size + 3 & ~3)
        if kind == NT_GNU_BUILD_ID and notes[name_at : name_at + 4] == b"GNU\0" and size <= 64:
            return notes[body_at : body_at + size].hex()
    return ""


def _map(path: Path) -> mmap.mmap:
    """Map a regular file; the name may be a stranger's choice."""
    try:
        descriptor = open_regular(path)
        try:
            return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise ElfError(f"{path.name} cannot be read: {error}") from error


def _sections(data: mmap.mmap | bytes, *, at: int, count: int, names_in: int) -> dict[str, ElfSection]:
    there = max(0, len(data) - at) // SHDR.size
    rows = list(SHDR.iter_unpack(data[at : at + min(count, there) * SHDR.size]))
    if names_in >= len(rows):
        return {}
    names = data[rows[names_in][4] : rows[names_in][4] + min(rows[names_in][5], 1 << 20)]
    sections: dict[str, ElfSection] = {}
    for index, (name_at, kind, _, address, offset, size, link, _, _, _) in enumerate(rows):
        name = names[name_at : name_at + 64].split(b"\0", 1)[0].decode("ascii", "replace")
        stored = 0 if kind == SHT_NOBITS else max(0, min(size, len(data) - offset))
        sections.setdefault(name, ElfSection(name, index, kind, address, offset, stored, link))
    return sections


def _symbols(
    table: bytes, shift: int, functions: list[tuple[int, int, int]], objects: list[tuple[int, int, int]]
) -> None:
    whole = table[: min(len(table) // SYM.size, MOST_SYMBOLS) * SYM.size]
    for name, info, _, section, value, size in SYM.iter_unpack(whole):
        if section and value:
            if info & 15 in FUNCTIONS:
                functions.append((value, size, name + shift))
            elif info & 15 == OBJECT:
                objects.append((value, size, name + shift))
