"""Works out a DWARF expression of an unwind table: what the kernel's signal frame and the PLT are told by."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from autopsy.examine.core.cfi import DwarfReader, NoRule

ALL = (1 << 64) - 1
MOST_STEPS = 256
CONSTANTS = {0x03: "<Q", 0x08: "<B", 0x09: "<b", 0x0A: "<H", 0x0B: "<h", 0x0C: "<I", 0x0D: "<i", 0x0E: "<Q", 0x0F: "<q"}
OF_TWO: dict[int, Callable[[int, int], int]] = {
    0x1A: lambda a, b: a & b,
    0x1C: lambda a, b: a - b,
    0x1E: lambda a, b: a * b,
    0x21: lambda a, b: a | b,
    0x22: lambda a, b: a + b,
    0x24: lambda a, b: a << min(b, 64),
    0x25: lambda a, b: a >> min(b, 64),
    0x27: lambda a, b: a ^ b,
    0x29: lambda a, b: int(a == b),
    0x2A: lambda a, b: int(_signed(a) >= _signed(b)),
    0x2B: lambda a, b: int(_signed(a) > _signed(b)),
    0x2C: lambda a, b: int(_signed(a) <= _signed(b)),
    0x2D: lambda a, b: int(_signed(a) < _signed(b)),
    0x2E: lambda a, b: int(a != b),
}


def work_out(program: bytes, registers: Mapping[int, int], word: Callable[[int], int], pushed: int | None) -> int:
    """Return what is left on top of the stack, on which `pushed` lies at first.

    `registers` are by DWARF's numbers; `word` reads eight bytes of memory.

    Raises:
        NoRule: it does not come to anything, or wants what no unwind table of QEMU's wants.
    """
    stack = [] if pushed is None else [pushed]
    reader = DwarfReader(program)
    try:
        for _ in range(MOST_STEPS):
            if not reader.more:
                return stack[-1] & ALL
            _step(reader.take("<B"), reader, stack, registers, word)
    except (IndexError, KeyError) as error:
        raise NoRule("an expression does not come to anything") from error
    raise NoRule("an expression is longer than any")


def _step(  # noqa: C901, PLR0912 - one case for each operation of DWARF's
    code: int, reader: DwarfReader, stack: list[int], registers: Mapping[int, int], word: Callable[[int], int]
) -> None:
    if code in CONSTANTS:
        stack.append(reader.take(CONSTANTS[code]) & ALL)
    elif code in OF_TWO:
        second, first = stack.pop(), stack.pop()
        stack.append(OF_TWO[code](first, second) & ALL)
    elif 0x30 <= code <= 0x4F:
        stack.append(code - 0x30)
    elif 0x70 <= code <= 0x8F:
        stack.append(registers[code - 0x70] + reader.signed() & ALL)
    else:
        match code:
            case 0x06:
                stack.append(word(stack.pop()))
            case 0x10:
                stack.append(reader.unsigned())
            case 0x11:
                stack.append(reader.signed() & ALL)
            case 0x12:
                stack.append(stack[-1])
            case 0x13:
                stack.pop()
            case 0x14:
                stack.append(stack[-2])
            case 0x16:
                stack[-1], stack[-2] = stack[-2], stack[-1]
            case 0x1F:
                stack.append(-stack.pop() & ALL)
            case 0x20:
                stack.append(~stack.pop() & ALL)
            case 0x23:
                stack.append(stack.pop() + reader.unsigned() & ALL)
            case _:
                raise NoRule(f"an expression has an operation that is not known ({code:#x})")


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number
