"""Reads a kernel log for tasks of QEMU's that hang or are blocked (sysrq w), with their stacks in the kernel."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import field

from autopsy.bundle.sections import Section, render
from autopsy.dataclass import dataclass

MOST_TASKS = 5_000
MOST_DEEP = 64
HUNG, BLOCKED, ON = "INFO: task ", " blocked for more than ", " is blocked on "
SUPPRESSED = "Future hung task reports are suppressed"
QEMU = ("qemu", "kvm", "CPU ", "worker", "IO ", "vhost", "iou-", "live_migration", "mig/", "call_rcu", "pool-")
STATES = frozenset("DSR")
SCHEDULERS = ("__schedule", "schedule", "io_schedule", "schedule_timeout", "schedule_preempt_disabled", "bit_wait")


@dataclass(slots=True)
class HungTask:
    """One task that hung: its kernel stack, innermost first, without what the unwinder only guessed."""

    name: str
    tid: int
    seconds: int
    tgid: int = 0
    state: str = "D"
    stack: list[str] = field(default_factory=list)


@dataclass(slots=True)
class KernelLog:
    """A kernel log on its way through."""

    tasks: dict[int, HungTask] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    current: HungTask | None = None
    tracing: bool = False

    def feed(self, line: str) -> bool:
        """Take one line; return whether it is of a task that hung."""
        place = line.find(HUNG)
        if place >= 0:
            return self._hung(line, line[place + len(HUNG) :])
        if SUPPRESSED in line:
            self._note("the kernel stopped to report hung tasks: others may have hung after that")
            return True
        if " state:" in line and (blocked := self._blocked(line)):
            return blocked
        if self.current is None:
            return False
        return self._of_task(line, self.current)

    def _blocked(self, line: str) -> bool:
        """Begin the task of a line `task:kvm state:D … pid:4242`: of a hung one more than its name is told."""
        _, mark, rest = line.partition("task:")
        name, _, after = rest.partition(" state:")
        tid = _number(line, " pid:")
        if not mark or not tid or (self.current is not None and self.current.tid == tid):
            return False
        self.current, self.tracing = None, False
        name = name.strip()
        if not name.startswith(QEMU) or tid in self.tasks:
            return False
        if len(self.tasks) < MOST_TASKS:
            state = after[:1] if after[:1] in STATES else "D"
            self.current = self.tasks[tid] = HungTask(name[:64], tid, 0, _number(line, " tgid:"), state)
            self._keep(line)
        return True

    def _hung(self, line: str, rest: str) -> bool:
        self.current, self.tracing = None, False
        who, blocked, how = rest.partition(BLOCKED)
        if not blocked:
            if ON in rest:
                self._note(f"the kernel: task {rest.strip()[:200]}")
            return ON in rest
        name, _, digits = who.rpartition(":")
        if not (digits.isascii() and digits.isdecimal() and len(digits) < 10) or not name.startswith(QEMU):
            return False
        seconds = how.split()[0] if how.split() else ""
        if len(self.tasks) < MOST_TASKS:
            long = int(seconds) if seconds.isascii() and seconds.isdecimal() and len(seconds) < 10 else 0
            self.current = self.tasks[int(digits)] = HungTask(name[:64], int(digits), long)
            self._keep(line)
        return True

    def _of_task(self, line: str, task: HungTask) -> bool:
        if "task:" in line and "state:" in line:
            task.tgid = _number(line, " tgid:")
        elif "Call Trace:" in line or "<TASK>" in line:
            self.tracing = True
        elif "</TASK>" in line or "RIP:" in line:
            self.current = None
        elif self.tracing:
            function = _function(line)
            if function == "":
                self.current = None
                return False
            if function and len(task.stack) < MOST_DEEP:
                task.stack.append(function)
        self._keep(line)
        return True

    def _keep(self, line: str) -> None:
        if len(self.lines) < MOST_TASKS:
            self.lines.append(line[:500])

    def _note(self, text: str) -> None:
        if text not in self.notes and len(self.notes) < 50:
            self.notes.append(text)


def _function(line: str) -> str | None:
    """Return `func+0x1/0x2` of a line of a trace, None for a guess, empty where it is no such line."""
    words = line.split()
    for place, word in enumerate(words):
        if "+0x" in word and "/0x" in word:
            return None if place and words[place - 1] == "?" else word
    return ""


def _number(line: str, key: str) -> int:
    _, mark, rest = line.partition(key)
    digits = rest.split()[0] if mark and rest.split() else ""
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 10 else 0


def of_vm(log: KernelLog, tids: Collection[int], pid: int) -> tuple[HungTask, ...]:
    """Return the tasks of one VM: those that are its threads as far as that is known, else all of QEMU's."""
    named = [task for task in log.tasks.values() if task.tid in tids or (pid and pid in {task.tgid, task.tid})]
    groups = {task.tgid for task in log.tasks.values()}
    if named or (pid and 0 not in groups):
        return tuple(named)
    return tuple(log.tasks.values())


def as_tasks(tasks: Collection[HungTask]) -> tuple[bytes, bytes]:
    """Return tasks.txt of two looks, as far as a kernel log tells them; the second is empty where it tells of one.

    The kernel calls a task hung if it was not switched to for so many seconds: that is its own second look.
    """
    hung = [task for task in tasks if task.seconds]
    first = _look(0, tasks)
    return first, _look(min(task.seconds for task in hung) * 1_000_000_000, hung) if hung else b""


def _look(at: int, tasks: Collection[HungTask]) -> bytes:
    return render([Section("clock/begin", f"{at}\n".encode()), *(one for task in tasks for one in _sections(task))])


def _sections(task: HungTask) -> Iterator[Section]:
    names = [frame.partition("+")[0] for frame in task.stack]
    wchan = next((name for name in names if name not in SCHEDULERS), "")
    state = f"{task.state} ({'disk sleep' if task.state == 'D' else 'sleeping'})"
    status = f"Name:\t{task.name}\nState:\t{state}\nvoluntary_ctxt_switches:\t0\n"
    yield Section(f"task/{task.tid}/comm", f"{task.name}\n".encode())
    yield Section(f"task/{task.tid}/status", status.encode())
    yield Section(f"task/{task.tid}/schedstat", b"0 0 0\n")
    yield Section(f"task/{task.tid}/wchan", wchan.encode())
    if task.stack:
        inner = task.stack[1:] if task.stack[0].startswith("__schedule") else task.stack
        yield Section(f"task/{task.tid}/stack", "".join(f"[<0>] {line_}\n" for line_ in inner).encode())
