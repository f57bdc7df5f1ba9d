"""Reads one line of a backtrace: gdb's, eu-stack's, pstack's, coredumpctl's, drgn's."""

from __future__ import annotations

from autopsy.bundle.records import Frame
from autopsy.dataclass import dataclass
from autopsy.incoming.stacks.names import SIGNAL, plain_name

MOST_PC = 1 << 64
MOST_LINE_NUMBER = 1 << 31
HEX = frozenset("0123456789abcdefABCDEF")


@dataclass(slots=True)
class Brackets:
    """Where the text stands in its parentheses and quotes; each character is looked at once."""

    depth: int = 0
    quote: str = ""
    escaped: bool = False
    at: int = 0
    opened: int = -1
    arguments: tuple[int, int] = (-1, -1)  # of the last group that follows a blank

    def feed(self, text: str) -> None:
        """Read on in `text`, from where the last call ended."""
        for place in range(self.at, len(text)):
            letter = text[place]
            if self.quote:
                self._within_quotes(letter)
            elif letter == "(":
                if not self.depth:
                    self.opened = place
                self.depth += 1
            elif letter == ")" and self.depth:
                self.depth -= 1
                if not self.depth and text[self.opened - 1 : self.opened] == " ":
                    self.arguments = self.opened, place
            elif letter in "\"'" and self.depth:
                self.quote = letter
        self.at = len(text)

    def _within_quotes(self, letter: str) -> None:
        if self.escaped:
            self.escaped = False
        elif letter == "\\":
            self.escaped = True
        elif letter == self.quote:
            self.quote = ""


def number_of(line: str) -> int | None:
    """Return N of a line that begins with `#N`, None of any other."""
    if not line.startswith("#"):
        return None
    digits, _, _ = line[1:9].partition(" ")
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 7 else None


def with_its_sign(line: str, following: int) -> str:
    """Return a frame without its `#`, which git takes for a comment's, as a frame with it; empty for any other line.

    It must be the first of a stack, or `following`, and have an address, or the place that follows its arguments.
    """
    bare = line.lstrip(" ")
    digits, _, rest = bare.partition(" ")
    if not (digits.isascii() and digits.isdecimal() and len(digits) < 4 and int(digits) in {0, following}):
        return ""
    rest = rest.lstrip(" ")
    whole = rest.startswith("0x") and " in " in rest[:24]
    if not whole and not ((rest[:1].isalpha() or rest[:1] == "_") and (") at " in rest or ") from " in rest)):
        return ""
    return f"#{bare}" if "(" in rest else ""


def with_a_number(line: str, following: int) -> str:
    """Return a frame whose number somebody left out as one that has it; empty for what begins with no address."""
    bare = line.lstrip(" ")
    whole = bare.startswith("0x") and " in " in bare[:24] and " (" in bare
    return f"#{max(0, following)}  {bare}" if whole else ""


def is_frame(text: str, brackets: Brackets) -> bool:
    """Tell a frame from a sentence that begins with a number: it has an address, or arguments as a debugger writes."""
    start = text.find(" ")
    if start < 0:
        return False
    rest = text[start:].lstrip(" ")
    if rest.startswith(("0x", SIGNAL)):
        return True
    first, last = brackets.arguments
    if first < 0:
        first, last = brackets.opened, len(text)
    if first < start or (not brackets.depth and brackets.arguments[0] < 0):
        return False
    name, within = text[start:first].strip(), text[first + 1 : last]
    if " " in name and not any(mark in name for mark in ("::", "<", "operator", "?? ")):
        return False
    return not within or "=" in within or ":" in within or within.startswith("...")


def frame(text: str, brackets: Brackets | None = None) -> Frame:
    """Return the frame that a whole line `#N …` tells of; what it does not say is empty."""
    if brackets is None:
        brackets = Brackets()
        brackets.feed(text)
    number = number_of(text) or 0
    start = text.find(" ")
    pc, start = _address(text, len(text) if start < 0 else start)
    first, last = brackets.arguments
    if brackets.depth and brackets.opened >= start and first < start:  # cut short within its arguments
        first, last = brackets.opened, len(text)
    if text.startswith(SIGNAL, start):
        return Frame(pc=pc, function=SIGNAL)
    if first < start:
        return _without_arguments(text[start:].strip(), pc, number)
    shown, within, after = text[start:first].strip(), text[first + 1 : last], text[last + 1 :].strip()
    if " + 0x" in within and "=" not in within:
        module, _, offset = within.rpartition(" + ")
        return Frame(
            pc=pc,
            function=plain_name(shown),
            module=module.removesuffix(" (deleted)") if module != "n/a" else "",
            offset=_hex(offset),
        )
    file, line, module = _place(after)
    if not after and within.count(":") == 2 and "=" not in within:
        file, line, _ = _place(f"at {within.rpartition(':')[0]}")
    inlined = not pc and number > 0
    return Frame(pc=pc, function=plain_name(_named(shown)), module=module, file=file, line=line, inlined=inlined)


def _named(shown: str) -> str:
    """Return a function's name without how far into it the address lies: `NAME + 0x1c`, `NAME+28`."""
    name, plus, offset = shown.rpartition("+")
    digits = offset.strip(" ").removeprefix("0x")
    return name.rstrip(" ") if plus and name and digits and len(digits) < 9 and HEX.issuperset(digits) else shown


def _without_arguments(rest: str, pc: int, number: int) -> Frame:
    """Read eu-stack's `NAME - MODULE`, and a line that was cut before its parenthesis."""
    rest = rest.removeprefix("- 1").strip()
    name, dash, module = rest.partition(" - ")
    if not dash:
        for word in (" at ", " from "):
            if word in rest:
                name = rest[: rest.index(word)]
                file, line, module = _place(rest[rest.index(word) :].strip())
                return Frame(pc=pc, function=plain_name(name), module=module, file=file, line=line)
    if name.startswith(("/", "- ")):
        name, module = "", name.removeprefix("- ")
    named, blank, place = name.partition(" ")
    if pc and blank and ":" in place and " " not in place:  # a sanitizer's: `in NAME FILE:LINE:COLUMN`
        bare, colon, column = place.rpartition(":")
        file, line, _ = _place(f"at {bare if colon and column.isdecimal() and bare.count(':') else place}")
        return Frame(pc=pc, function=plain_name(_named(named)), file=file, line=line)
    name = _named(name)
    return Frame(pc=pc, function=plain_name(name), module=module.strip(), inlined=not pc and number > 0)


def _address(text: str, start: int) -> tuple[int, int]:
    """Return the address after the frame's number, 0 for none, and where the function's name begins."""
    while text[start : start + 1] == " ":
        start += 1
    if not text.startswith("0x", start):
        return 0, start
    end = start + 2
    while end < len(text) and text[end] in HEX:
        end += 1
    pc = _hex(text[start:end])
    while text[end : end + 1] == " ":
        end += 1
    if text.startswith("in ", end):
        end += 3
    return pc, end


def _hex(word: str) -> int:
    digits = word.removeprefix("0x")
    if not digits or len(digits) > 16 or not HEX.issuperset(digits):
        return 0
    return int(digits, 16)


def _place(after: str) -> tuple[str, int, str]:
    """Return file, line and module of ` at FILE:LINE` or ` from MODULE`."""
    if after.startswith("from "):
        return "", 0, after[5:].strip().removeprefix("target:")
    if not after.startswith("at "):
        return "", 0, ""
    file, colon, digits = after[3:].strip().rpartition(":")
    if not colon or not digits.isascii() or not digits.isdecimal() or len(digits) > 9:
        return after[3:].strip(), 0, ""
    return file, int(digits), ""
