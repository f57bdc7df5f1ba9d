"""Scans pasted text for backtraces, line by line and within bounds, whatever stands around them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field

from autopsy.bundle.records import Coroutine, Frame, ThreadStack
from autopsy.dataclass import dataclass
from autopsy.incoming.stacks import lldb
from autopsy.incoming.stacks.clean import MOST_LINE, clean
from autopsy.incoming.stacks.dumps import Dumps
from autopsy.incoming.stacks.frame_line import Brackets, frame, is_frame, number_of, with_a_number, with_its_sign
from autopsy.incoming.stacks.lock_arguments import Sought
from autopsy.incoming.stacks.pasted import LockWait, Paste, PastedDump, PrintedMutex
from autopsy.incoming.stacks.printed import Printing
from autopsy.incoming.stacks.thread_line import Header, header

MOST_THREADS = 20_000
MOST_FRAMES = 300_000
MOST_DEEP = 1_000  # frames of one stack
MOST_LOOKS = 20
MOST_CONTINUED = 64  # lines of one frame
MORE = "(More stack frames follow...)"
STOPPED = "Backtrace stopped:"
CRASH = ("Program terminated with signal", "Program received signal", "Thread received signal")
ASSERTED = "__assert_fail"
PARKED = frozenset({"qemu_coroutine_switch", "qemu_coroutine_yield"})
LOOPS = frozenset({"main", "main_loop_wait", "qemu_main_loop", "main_loop"})


@dataclass(slots=True)
class OpenStack:
    """A stack that is being read."""

    header: Header | None = None
    frames: list[Frame] = field(default_factory=list)
    sought: Sought = field(default_factory=Sought)
    cut_short: str = ""
    deeper: int = 0

    def add(self, text: str, brackets: Brackets) -> None:
        """Take one frame, unless the stack is deeper than anybody reads."""
        if len(self.frames) >= MOST_DEEP:
            self.deeper += 1
            return
        read = frame(text, brackets)
        self.frames.append(read)
        self.sought.look(read, text)

    @property
    def is_coroutine(self) -> bool:
        """Tell whether it is a parked coroutine: asked for as one, or it begins where all of them rest."""
        if self.header is not None:
            return bool(self.header.coroutine)
        return any(frame.function in PARKED for frame in self.frames[:2])


@dataclass(slots=True)
class Scan:
    """One text on its way through; `feed` it lines, then `end` it."""

    looks: list[PastedDump] = field(default_factory=list)
    threads: dict[int, ThreadStack] = field(default_factory=dict)
    coroutines: dict[int, Coroutine] = field(default_factory=dict)
    waits: dict[int, LockWait] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    listed: dict[int, Frame] = field(default_factory=dict)
    stack: OpenStack | None = None
    text: str = ""  # of the frame that may go on in the next line
    brackets: Brackets = field(default_factory=Brackets)
    continued: int = 0
    printing: Printing = field(default_factory=Printing)
    crash: list[str] = field(default_factory=list)
    program: str = ""
    lines: int = 0
    frames: int = 0
    long_lines: int = 0
    left_out: int = 0
    bare: int = 0
    unnumbered: int = 0  # frames of the stack at hand that had no number
    headless: set[int] = field(default_factory=set)
    dumps: Dumps = field(default_factory=Dumps)

    def feed(self, line: str) -> bool:
        """Take one line of the text; return whether it is of a stack."""
        self.lines += 1
        self.long_lines += len(line) > MOST_LINE
        whole = clean(line)
        if not whole.strip():
            return False
        if "frame #" in whole[:32]:
            whole = lldb.as_gdb(whole) or whole
        number = number_of(whole) if whole.startswith("#") else number_of(whole.lstrip(" "))
        if number is None and not (self.text and self.brackets.depth):
            signed = with_its_sign(whole, self._following())
            unnumbered = "" if signed else with_a_number(whole, self._following())
            self.unnumbered += bool(unnumbered)
            number, whole = number_of(signed or unnumbered), signed or unnumbered or whole
        if number is not None:
            return self._begin(number, whole.lstrip(" "))
        if self.text and self._goes_on(whole):
            self._continue(whole)
        elif head := header(whole) or (lldb.header(whole) if "thread #" in whole[:12] else None):
            self._header(head)
        else:
            self._other(whole.strip(" "))
            return False
        return True

    def take(self, frames: tuple[Frame, ...]) -> None:
        """Take a stack that somebody else read."""
        self._close_stack()
        whole = frames[: min(MOST_DEEP, max(0, MOST_FRAMES - self.frames))]
        self.frames += len(whole)
        self.stack = OpenStack(Header(len(self.threads) + 1, 0), list(whole))
        self._close_stack()

    def _following(self) -> int:
        """Return which number the next frame of the stack at hand has, -1 where there is none."""
        return len(self.stack.frames) + bool(self.text) if self.stack is not None else -1

    def _begin(self, number: int, text: str) -> bool:
        brackets = Brackets()
        brackets.feed(text)
        brief = self.stack is not None and self.stack.header is not None and self.stack.header.brief
        if self.dumps.foreign or not (is_frame(text, brackets) or brief):
            return False
        self._close_frame()
        self.printing.stop()
        if number == 0 and self.stack is not None and self.stack.frames:
            shown = self.stack.header
            self._close_stack_of(shown if shown and shown.selected and len(self.stack.frames) == 1 else None)
        if self.stack is None:
            self.stack = OpenStack()
        self.text, self.continued = text, 0
        self.brackets = brackets
        return True

    def _close_stack_of(self, selected: Header | None) -> None:
        """Begin another stack; that of a thread that was only just selected is the same one, in full."""
        if selected is None:
            self._close_stack()
        else:
            self.stack = OpenStack(selected)

    def _goes_on(self, line: str) -> bool:
        """Tell whether a line is the rest of a frame that gdb or a mail has wrapped."""
        bare = line.lstrip(" ")
        if self.continued >= MOST_CONTINUED:
            return False
        if self.brackets.depth:
            return header(line) is None or line.startswith(" ")
        unfinished = self.brackets.arguments[0] < 0
        if bare.startswith(("at ", "from ")):
            return True
        return unfinished and (bare.startswith("(") or self.text.endswith((" in", " at", " from")))

    def _continue(self, line: str) -> None:
        self.continued += 1
        if len(self.text) < MOST_LINE:
            self.text += " " + line.strip(" ")
            self.brackets.feed(self.text)

    def _header(self, head: Header) -> None:
        self._close_stack()
        self.printing.stop()
        if not self.dumps.begins(head):
            return
        if head.rest:
            self._list(head)
            return
        self.stack = OpenStack(head)

    def _list(self, head: Header) -> None:
        """Keep what `info threads` says: names, and one frame of each thread for those that are shown no more of."""
        if len(self.listed) >= MOST_THREADS:
            return
        if head.name:
            self.names[head.tid] = head.name
        self.listed[head.tid] = frame(f"#0  {head.rest}")

    def _other(self, line: str) -> None:
        if line.startswith(MORE) and self.stack is not None:
            self._close_frame()
            self.stack.cut_short = "more frames follow, and were not printed"
        elif line.startswith(STOPPED) and self.stack is not None:
            self._close_frame()
            self.stack.cut_short = line[:200]
        elif line.startswith(CRASH) and len(self.crash) < MOST_LOOKS:
            self.crash.append(line[:200])
        elif line.startswith("Core was generated by ") and not self.program:
            self.program = line[22:].strip("`'. ")[:4000]
        else:
            self._close_frame()
            if crash := self.dumps.feed(line):
                self._close_stack()
                self.crash += [crash] if len(self.crash) < MOST_LOOKS else []
            self.printing.feed(line)

    def _close_frame(self) -> None:
        if not self.text:
            return
        text, self.text = self.text, ""
        if self.stack is None:
            return
        if self.frames >= MOST_FRAMES:
            self.left_out += 1
            return
        self.frames += 1
        self.stack.add(text, self.brackets)
        if ASSERTED in text and " + 0x" not in text and len(self.crash) < MOST_LOOKS:
            self.crash.append(text[text.index(ASSERTED) :][:300])

    def _close_stack(self) -> None:
        self._close_frame()
        stack, self.stack = self.stack, None
        alone, self.unnumbered = self.unnumbered == 1, 0
        if stack is None or not stack.frames:
            return
        if alone and stack.header is None and len(stack.frames) == 1:
            self.frames -= 1  # one frame without a number is what gdb says by itself, of where it has stopped
            return
        if len(self.threads) + len(self.coroutines) >= MOST_THREADS:
            self.left_out += len(stack.frames)
            return
        if stack.deeper:
            stack.cut_short = f"{stack.deeper} more frames were left out: the stack is {MOST_DEEP + stack.deeper} deep"
        if stack.is_coroutine:
            self._add_coroutine(stack)
        else:
            self._add_thread(stack)

    def _add_coroutine(self, stack: OpenStack) -> None:
        address = stack.header.coroutine if stack.header else 0
        address = address or len(self.coroutines) + 1
        if address in self.coroutines:
            self._next_look()
        self.coroutines[address] = Coroutine(
            address=address,
            stack=0,
            stack_size=0,
            state="parked",
            pc=stack.frames[0].pc,
            sp=0,
            entry=0,
            entry_argument=0,
            caller=0,
            context=0,
            locks_held=0,
            frames=tuple(stack.frames),
        )

    def _add_thread(self, stack: OpenStack) -> None:
        head = stack.header
        tid = (head.tid or head.number) if head else 0
        if not tid:
            tid = self._bare(stack)
        if tid in self.threads:
            self._next_look()
        name = (head.name if head else "") or self.names.get(tid, "")
        self.threads[tid] = ThreadStack(tid=tid, comm=name, frames=tuple(stack.frames), cut_short=stack.cut_short)
        if stack.sought.waits:
            self.waits[tid] = LockWait(tid=tid, address=stack.sought.address, symbol=stack.sought.symbol)

    def _bare(self, stack: OpenStack) -> int:
        """Return a number for a stack without a header: the same one again if it is the same thread's second look."""
        loops = any(frame.function in LOOPS for frame in stack.frames)
        for tid, met in self.threads.items():
            both = loops and any(frame.function in LOOPS for frame in met.frames)
            if tid <= self.bare and (both or _names(met.frames) == _names(stack.frames)):
                return tid
        self.bare += 1
        while self.bare in self.threads:
            self.bare += 1
        self.headless.add(self.bare)
        return self.bare

    def _next_look(self) -> None:
        """Begin another look: somebody is shown for the second time."""
        look = self._look()
        if len(self.looks) < MOST_LOOKS - 1:
            self.looks.append(look)
        self.threads, self.coroutines, self.waits = {}, {}, {}

    def _look(self) -> PastedDump:
        threads = {tid: stack for tid, stack in self.threads.items() if not self._is_banner(tid, stack)}
        for tid, stack in self.listed.items():
            why = "only its innermost frame was pasted"
            threads.setdefault(tid, ThreadStack(tid=tid, comm=self.names.get(tid, ""), frames=(stack,), cut_short=why))
        return PastedDump(
            threads=tuple(threads.values()),
            coroutines=tuple(self.coroutines.values()),
            waits=tuple(self.waits.values()),
        )

    def _is_banner(self, tid: int, stack: ThreadStack) -> bool:
        """Tell the one frame that gdb prints by itself, as it opens a process or a core, from a stack."""
        if tid not in self.headless or len(stack.frames) != 1:
            return False
        innermost = {stack.frames[0].function for other, stack in self.threads.items() if other != tid}
        return stack.frames[0].function in innermost

    def end_of_file(self) -> None:
        """Take no line of the next file for the rest of this one's last stack."""
        self._close_stack()
        self.printing.stop()
        self.dumps.end_of_file()

    def end(self) -> Paste:
        """Return all that the text held."""
        self._close_stack()
        look = self._look()
        if look.threads or look.coroutines:
            self.looks.append(look)
        notes = [*self.dumps.notes(), *(f"gdb printed {what}: {n}" for what, n in self.printing.counts.items())]
        if self.long_lines:
            notes.append(f"{self.long_lines} lines were longer than {MOST_LINE} characters, and were cut there")
        if self.left_out:
            notes.append(
                f"{self.left_out} frames were left out: more than {MOST_THREADS} stacks or {MOST_FRAMES} frames"
            )
        return Paste(
            looks=tuple(self.looks),
            printed=tuple(self.printing.found),
            notes=tuple(notes),
            lines=self.lines,
            frames=self.frames,
            crash=tuple(self.crash),
            program=self.program,
        )


def _names(frames: Iterable[Frame]) -> tuple[str, ...]:
    return tuple(frame.function for frame in frames)


def scan(lines: Iterable[str]) -> Paste:
    """Return what a text holds."""
    reading = Scan()
    for line in lines:
        reading.feed(line)
    return reading.end()


__all__ = ["Paste", "PastedDump", "PrintedMutex", "Scan", "scan"]
