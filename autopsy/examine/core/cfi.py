"""Reads from .eh_frame how a function's caller is found: where each register was saved (DWARF 5, 6.4; LSB, 10.6)."""

from __future__ import annotations

import struct
from bisect import bisect_right
from dataclasses import replace
from enum import Enum, auto

from autopsy.dataclass import dataclass
from autopsy.examine.core.elf import SHT_NOBITS, Elf

LARGEST_ENTRY = 1 << 16  # the longest that any compiler writes is a few KB
MOST_STATES = 64
HEADER = b"\x01\x1b\x03\x3b"  # version 1; a table of sdata4 relative to its own section, as every linker writes
RETURN_ADDRESS = 16  # DWARF's number of it, as of the registers below it (System V ABI of x86-64, figure 3.36)

# DW_EH_PE_*: how a pointer is written, and that it counts from its own place.
FORMATS = {0x00: "<Q", 0x02: "<H", 0x03: "<I", 0x04: "<Q", 0x0A: "<h", 0x0B: "<i", 0x0C: "<q"}
FROM_HERE = 0x10
OMITTED = 0xFF


class NoRule(Exception):
    """The tables do not tell, or in a way that no compiler of QEMU's writes."""


class WhereSaved(Enum):
    """Where a register's former value is."""

    SAME = auto()
    UNDEFINED = auto()
    AT = auto()
    IS = auto()
    REGISTER = auto()
    AT_EXPRESSION = auto()
    IS_EXPRESSION = auto()


@dataclass(frozen=True, slots=True)
class RegisterRule:
    """`number` counts from the canonical frame address, or is a register; `expression` is for the last two kinds."""

    how: WhereSaved
    number: int = 0
    expression: bytes = b""


@dataclass(frozen=True, slots=True)
class UnwindRow:
    """What holds at one instruction. The frame address is an expression, or a register with an offset.

    `signal` says that the kernel made this frame, to deliver a signal: its caller did not call.
    """

    register: int
    offset: int
    expression: bytes
    rules: dict[int, RegisterRule]
    signal: bool


@dataclass(frozen=True, slots=True)
class _Common:
    """What several functions share (a CIE)."""

    code_unit: int
    data_unit: int
    encoding: int
    augmented: bool
    signal: bool
    program: bytes


class DwarfReader:
    """Takes numbers off bytes that lie at an address."""

    def __init__(self, data: bytes, address: int = 0) -> None:
        self.data = data
        self.address = address
        self.at = 0

    @property
    def more(self) -> bool:
        """Return whether anything is left."""
        return self.at < len(self.data)

    def take(self, form: str) -> int:
        """Take a number of a fixed size."""
        size = struct.calcsize(form)
        if self.at + size > len(self.data):
            raise NoRule("an entry ends too early")
        (number,) = struct.unpack_from(form, self.data, self.at)
        self.at += size
        return int(number)

    def unsigned(self) -> int:
        """Take a ULEB128."""
        value = shift = 0
        while True:
            byte = self.take("<B")
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
            if shift > 63:
                raise NoRule("a number is larger than any")

    def signed(self) -> int:
        """Take an SLEB128."""
        start = self.at
        value = self.unsigned()
        bits = 7 * (self.at - start)
        return value - (1 << bits) if self.data[self.at - 1] & 0x40 else value

    def block(self) -> bytes:
        """Take so many bytes as a number before them says."""
        size = self.unsigned()
        if self.at + size > len(self.data):
            raise NoRule("an entry ends too early")
        self.at += size
        return self.data[self.at - size : self.at]

    def pointer(self, encoding: int) -> int:
        """Take a pointer as `encoding` has it written."""
        if encoding == OMITTED:
            return 0
        form = FORMATS.get(encoding & 0x0F)
        if form is None or encoding & 0x70 not in {0, FROM_HERE}:
            raise NoRule(f"a pointer is written in a way that is not known ({encoding:#x})")
        place = self.address + self.at
        number = self.take(form)
        return number + place & (1 << 64) - 1 if encoding & FROM_HERE else number

    def string(self) -> bytes:
        """Take what stands before a NUL."""
        end = self.data.find(b"\0", self.at)
        if end < 0:
            raise NoRule("an entry ends too early")
        text, self.at = self.data[self.at : end], end + 1
        return text


class UnwindTables:
    """The unwind tables of one file, by addresses of its own."""

    def __init__(self, elf: Elf) -> None:
        self._elf = elf
        self._starts: list[int] = []
        self._entries: list[int] = []
        place = elf.sections.get(".eh_frame_hdr")
        if place is None or place.kind == SHT_NOBITS:
            return
        data = elf.read(place.address, place.size)
        if data[:4] != HEADER or len(data) < 12:
            return
        (count,) = struct.unpack_from("<I", data, 8)
        rows = sorted(struct.iter_unpack("<ii", data[12 : 12 + min(count, (len(data) - 12) // 8) * 8]))
        self._starts = [place.address + start for start, _ in rows]
        self._entries = [place.address + entry for _, entry in rows]

    def row(self, address: int) -> UnwindRow:
        """Return what holds at an instruction.

        Raises:
            NoRule: the file does not tell.
        """
        index = bisect_right(self._starts, address) - 1
        if index < 0:
            raise NoRule("no function is told to be there")
        entry = self._entry(self._entries[index])
        common = self._common(entry.address - entry.take("<I"))
        start = entry.pointer(common.encoding)
        size = entry.pointer(common.encoding & 0x0F)
        if not start <= address < start + size:
            raise NoRule("no function is told to be there")
        if common.augmented:
            entry.block()
        first = _run(common, common.program, start, address, None)
        return _run(common, entry.data[entry.at :], start, address, first)

    def _entry(self, address: int) -> DwarfReader:
        """Return the body of a CIE or an FDE, without its length."""
        head = self._elf.read(address, 4)
        size = int.from_bytes(head, "little")
        if len(head) < 4 or not 4 <= size <= LARGEST_ENTRY:
            raise NoRule("an entry has a length that none has")
        return DwarfReader(self._elf.read(address + 4, size), address + 4)

    def _common(self, address: int) -> _Common:
        entry = self._entry(address)
        if entry.take("<I") or (version := entry.take("<B")) not in {1, 3}:
            raise NoRule("a common entry is of a version that is not known")
        letters = entry.string()
        code_unit, data_unit = entry.unsigned(), entry.signed()
        returns = entry.take("<B") if version == 1 else entry.unsigned()
        if returns != RETURN_ADDRESS or letters[:1] not in {b"", b"z"}:
            raise NoRule("a common entry is none of x86-64's")
        encoding, augmentation = 0, DwarfReader(b"")
        if letters:
            start = entry.at
            body = entry.block()
            augmentation = DwarfReader(body, entry.address + start)
        for letter in letters[1:]:
            match chr(letter):
                case "R":
                    encoding = augmentation.take("<B")
                case "P":
                    personality = augmentation.take("<B")
                    augmentation.take(FORMATS.get(personality & 0x0F, "<Q"))
                case "L":
                    augmentation.take("<B")
                case _:
                    pass
        return _Common(code_unit, data_unit, encoding, bool(letters), b"S" in letters, entry.data[entry.at :])


def _run(common: _Common, program: bytes, start: int, address: int, first: UnwindRow | None) -> UnwindRow:  # noqa: C901, PLR0912, PLR0915 - one case for each instruction of DWARF's
    """Return what holds at `address` once the instructions of a function up to there were carried out."""
    row = first or UnwindRow(register=7, offset=8, expression=b"", rules={}, signal=common.signal)
    rules = dict(row.rules)
    kept: list[tuple[UnwindRow, dict[int, RegisterRule]]] = []
    reader, here = DwarfReader(program), start
    while reader.more and here <= address:
        code = reader.take("<B")
        low = code & 0x3F
        if code & 0xC0 == 0x40:
            here += low * common.code_unit
            continue
        if code & 0xC0 == 0x80:
            rules[low] = RegisterRule(WhereSaved.AT, reader.unsigned() * common.data_unit)
            continue
        if code & 0xC0 == 0xC0:
            _restore(rules, low, first)
            continue
        match low:
            case 0x00:  # nothing, to fill the entry up
                pass
            case 0x02 | 0x03 | 0x04:
                here += reader.take({2: "<B", 3: "<H", 4: "<I"}[low]) * common.code_unit
            case 0x05:
                register = reader.unsigned()
                rules[register] = RegisterRule(WhereSaved.AT, reader.unsigned() * common.data_unit)
            case 0x06:
                _restore(rules, reader.unsigned(), first)
            case 0x07:
                rules[reader.unsigned()] = RegisterRule(WhereSaved.UNDEFINED)
            case 0x08:
                rules[reader.unsigned()] = RegisterRule(WhereSaved.SAME)
            case 0x09:
                register = reader.unsigned()
                rules[register] = RegisterRule(WhereSaved.REGISTER, reader.unsigned())
            case 0x0A:
                if len(kept) >= MOST_STATES:
                    raise NoRule("more is remembered than any compiler has remembered")
                kept.append((row, dict(rules)))
            case 0x0B if kept:
                row, rules = kept.pop()
            case 0x0C:
                row = replace(row, register=reader.unsigned(), offset=reader.unsigned(), expression=b"")
            case 0x0D:
                row = replace(row, register=reader.unsigned(), expression=b"")
            case 0x0E:
                row = replace(row, offset=reader.unsigned())
            case 0x0F:
                row = replace(row, expression=reader.block())
            case 0x10 | 0x16:
                register = reader.unsigned()
                how = WhereSaved.AT_EXPRESSION if low == 0x10 else WhereSaved.IS_EXPRESSION
                rules[register] = RegisterRule(how, expression=reader.block())
            case 0x11:
                register = reader.unsigned()
                rules[register] = RegisterRule(WhereSaved.AT, reader.signed() * common.data_unit)
            case 0x12:
                register = reader.unsigned()
                row = replace(row, register=register, offset=reader.signed() * common.data_unit, expression=b"")
            case 0x13:
                row = replace(row, offset=reader.signed() * common.data_unit)
            case 0x14 | 0x15:
                register = reader.unsigned()
                number = reader.unsigned() if low == 0x14 else reader.signed()
                rules[register] = RegisterRule(WhereSaved.IS, number * common.data_unit)
            case 0x2E:  # DW_CFA_GNU_args_size
                reader.unsigned()
            case _:
                raise NoRule(f"an instruction is not known ({code:#x})")
    return replace(row, rules=rules)


def _restore(rules: dict[int, RegisterRule], register: int, first: UnwindRow | None) -> None:
    """Let a register have the rule again that it had where the function begins."""
    if first is not None and register in first.rules:
        rules[register] = first.rules[register]
    else:
        rules.pop(register, None)
