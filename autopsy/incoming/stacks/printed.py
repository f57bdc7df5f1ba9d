"""Reads the owners of mutexes, and counts of requests, that somebody had gdb print."""

from __future__ import annotations

from dataclasses import field

from autopsy.dataclass import dataclass
from autopsy.incoming.stacks.pasted import PrintedMutex

MOST = 200
COMMANDS = ("p ", "print ", "p/x ", "call ")
COUNTS = ("in_flight", "quiesce_counter", "io_plugged", "nb_plugged")  # of QEMU's block layer
OWNER, KIND, COUNT = "__owner = ", "__kind = ", "__count = "


@dataclass(slots=True)
class Printing:
    """The command that was typed last, and what it printed so far."""

    found: list[PrintedMutex] = field(default_factory=list)
    expression: str = ""
    open: bool = False
    counts: dict[str, int] = field(default_factory=dict)  # by what was typed, and the field

    def feed(self, line: str) -> None:
        """Take a line that is no frame and no header."""
        if line.startswith(COMMANDS):
            self.expression = line.partition(" ")[2].strip()[:200]
            self.open = False
            return
        if line.startswith("$") and " = " in line[:12]:
            self.open = True
        if self.open and self.expression and len(self.counts) < MOST:
            self._count(line)
        if not (self.open and self.expression and OWNER in line and len(self.found) < MOST):
            return
        owner = _number_after(line, OWNER)
        if owner is not None:
            kind, count = _number_after(line, KIND) or 0, _number_after(line, COUNT) or 0
            self.found.append(PrintedMutex(expression=self.expression, owner=owner, kind=kind, count=count))
        self.open = False

    def _count(self, line: str) -> None:
        """Take `$1 = 3` of a count that was asked for, or a count inside of a whole object."""
        last = self.expression.rpartition(">")[2].rpartition(".")[2].strip("() ")
        for name in COUNTS:
            shown = f"$ = {line.partition(' = ')[2]}" if last == name else line
            number = _number_after(shown, "$ = " if last == name else f"{name} = ")
            if number is not None:
                self.counts.setdefault(self.expression if last == name else f"{self.expression}: {name}", number)

    def stop(self) -> None:
        """Forget the command: something else follows."""
        self.expression, self.open = "", False


def _number_after(line: str, key: str) -> int | None:
    _, mark, rest = line.partition(key)
    end = 0
    while end < min(len(rest), 10) and rest[end] in "0123456789":
        end += 1
    return int(rest[:end]) if mark and end else None
