"""Unwinds threads and coroutines without gdb, and tells them in gdb's words: by the unwind tables alone.

What gdb knows besides is not told: functions that were inlined, lines of source.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Container, Iterable, Iterator, Sequence

from autopsy.examine.core.cfi import RETURN_ADDRESS, NoRule, RegisterRule, UnwindRow, UnwindTables, WhereSaved
from autopsy.examine.core.dwarf_expression import ALL, work_out
from autopsy.examine.core.extent import CoreExtent
from autopsy.examine.core.reader import CoreThread, Registers
from autopsy.examine.core.symbols import Symbols

MOST_FRAMES = 256
STACK_POINTER = 7
MARK = "unwound by autopsy, without gdb"
NOTE = "unwound by autopsy itself, without inlined functions and lines"
NUMBERS = ("rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp", *(f"r{number}" for number in range(8, 16)), "rip")


class FrozenStacks:
    """The frozen stacks, by address."""

    def __init__(self, extents: Sequence[CoreExtent]) -> None:
        self._extents = extents
        self._starts = [extent.start for extent in extents]

    def word(self, address: int) -> int:
        """Return eight bytes of a stack.

        Raises:
            NoRule: they were not frozen.
        """
        index = bisect_right(self._starts, address) - 1
        if index < 0 or address + 8 > self._extents[index].end:
            raise NoRule(f"{address:#x} was not frozen")
        extent = self._extents[index]
        place = extent.offset + address - extent.start
        return int.from_bytes(extent.source[place : place + 8], "little")


def backtrace(
    threads: Iterable[CoreThread],
    extents: Sequence[CoreExtent],
    symbols: Symbols,
    ends_at: float,
    *,
    only: Container[int],
) -> str:
    """Return what gdb would print of these threads for `thread apply all bt`; who comes after the deadline is not."""
    unwinder = _Unwinder(symbols, FrozenStacks(extents), ends_at)
    lines: list[str] = []
    for number, thread in enumerate(threads, 1):
        if thread.tid not in only:
            continue
        if time.monotonic() > ends_at:
            break
        lines += [f"Thread {number} (LWP {thread.tid}) ({MARK}):", *unwinder.lines(thread.registers), ""]
    return "\n".join(lines)


class _Unwinder:
    def __init__(self, symbols: Symbols, stacks: FrozenStacks, ends_at: float) -> None:
        self._ends_at = ends_at
        self._symbols = symbols
        self._stacks = stacks
        self._tables: dict[str, UnwindTables] = {}
        self._rows: dict[int, UnwindRow] = {}  # threads that sleep alike stand at the same few places

    def lines(self, registers: Registers) -> Iterator[str]:
        """Yield one line a frame, and why there are no more if the outermost was not reached."""
        by_name = registers._asdict()
        values = {number: by_name[name] for number, name in enumerate(NUMBERS)}
        called = False
        for number in range(MOST_FRAMES):
            pc = values.get(RETURN_ADDRESS, 0)
            if not pc:
                return
            try:
                row = self._row(pc, called=called)
            except NoRule as error:
                yield self._line(number, pc, called=called)
                yield f"Backtrace stopped: {error}"
                return
            yield f"#{number}  <signal handler called>" if row.signal else self._line(number, pc, called=called)
            try:
                outer = self._caller(row, values)
            except NoRule as error:
                yield f"Backtrace stopped: {error}"
                return
            if outer is None:
                return
            if outer[STACK_POINTER] <= values[STACK_POINTER] and not row.signal:  # which may have a stack of its own
                yield "Backtrace stopped: the caller's frame does not lie above its own (corrupt stack?)"
                return
            values, called = outer, not row.signal
        yield "(More stack frames follow...)"

    def _line(self, number: int, pc: int, *, called: bool) -> str:
        frame = self._symbols.frame(pc, called=called)
        where = f" from {frame.module}" if frame.module else ""
        return f"#{number:<2} {pc:#018x} in {frame.function or '??'} (){where}"

    def _row(self, pc: int, *, called: bool) -> UnwindRow:
        """Return what holds at a pc: of a return address, at the call before it: that may be a function's last."""
        at = pc - called
        if at not in self._rows:
            if time.monotonic() > self._ends_at:
                raise NoRule("its time was up")
            image = self._symbols.image_at(at)
            if image is None or image.file is None:
                raise NoRule("no unwind information: the file is not at hand" if image else "no file is mapped there")
            if image.path not in self._tables:
                self._tables[image.path] = UnwindTables(image.file.elf)
            self._rows[at] = self._tables[image.path].row(at - image.bias)
        return self._rows[at]

    def _caller(self, row: UnwindRow, values: dict[int, int]) -> dict[int, int] | None:
        """Return the caller's registers, as far as they are known; nothing where this frame is the outermost."""
        if row.expression:
            frame = work_out(row.expression, values, self._stacks.word, None)
        elif row.register in values:
            frame = values[row.register] + row.offset & ALL
        else:
            raise NoRule("the frame counts from a register that is not known")
        returns = row.rules.get(RETURN_ADDRESS)
        if returns is None or returns.how is WhereSaved.UNDEFINED:
            return None
        outer = dict(values) | {STACK_POINTER: frame}
        for register, rule in row.rules.items():
            value = self._value(register, rule, frame, values)
            if value is None:
                outer.pop(register, None)
            else:
                outer[register] = value
        return outer

    def _value(  # noqa: PLR0911 - one answer for each rule
        self, register: int, rule: RegisterRule, frame: int, values: dict[int, int]
    ) -> int | None:
        match rule.how:
            case WhereSaved.SAME:
                return values.get(register)
            case WhereSaved.UNDEFINED:
                return None
            case WhereSaved.AT:
                return self._stacks.word(frame + rule.number & ALL)
            case WhereSaved.IS:
                return frame + rule.number & ALL
            case WhereSaved.REGISTER:
                return values.get(rule.number)
            case WhereSaved.AT_EXPRESSION:
                return self._stacks.word(work_out(rule.expression, values, self._stacks.word, frame))
            case WhereSaved.IS_EXPRESSION:
                return work_out(rule.expression, values, self._stacks.word, frame)
