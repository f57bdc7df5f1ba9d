"""Tells the crashes of QEMU from those of others in a log: systemd-coredump and ABRT tell of every program's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field

from autopsy.dataclass import dataclass
from autopsy.incoming.stacks.thread_line import Header

DUMPED, KILLED = " dumped core", " killed by SIG"
OURS = ("qemu-system-", "qemu-kvm", "qemu:", "kvm")
MOST_SAID = 200


@dataclass(slots=True)
class Dumps:
    """Whose dump the stacks are of that follow; no more than one process's are read."""

    foreign: bool = False  # what is being read is another program's
    other: bool = False  # the next dump will be
    dumped: bool = False  # as systemd-coredump says it, not above a process's stacks
    pid: int = 0
    passed_over: set[int] = field(default_factory=set)  # further QEMUs
    named: bool = False  # the next line is a command line, of the process whose stacks follow

    def feed(self, line: str) -> str:
        """Take a line that is no frame and no header; return how QEMU crashed, where it says so."""
        if self.named and line:
            self.named, self.other = False, not _is_ours(line.split(maxsplit=1)[0])
            self.foreign, self.dumped = self.other, False
        if line.startswith("/proc/") and line.endswith("/cmdline:"):
            self.named = True
        if DUMPED in line and "Process " in line:
            return self._dumped(line)
        who, killed, how = line.partition(KILLED)
        if killed and who.split()[-1:] and _is_ours(who.split()[-1]):
            return f"{who.split()[-1]}{KILLED}{how.split(' ')[0]}"[:MOST_SAID]
        return ""

    def begins(self, header: Header) -> bool:
        """Tell whether a thread's stack is to be read; a header of another kind ends what systemd-coredump tells."""
        self.foreign = self.other and (header.dumped or not self.dumped)
        return not self.foreign

    def _dumped(self, line: str) -> str:
        """Take `Process 827 (qemu-system-x86) of user 107 dumped core` and whatever follows."""
        process = line[line.index("Process ") :].partition(DUMPED)[0]
        words = process.split()
        pid = (
            int(words[1])
            if len(words) > 1 and words[1].isascii() and words[1].isdecimal() and len(words[1]) < 10
            else 0
        )
        name = process.partition("(")[2].partition(")")[0]
        ours = _is_ours(name)
        if ours and self.pid and pid != self.pid:
            self.passed_over.add(pid)
        self.dumped = True
        self.other = not ours or bool(self.pid and pid != self.pid)
        if self.other:
            return ""
        again, self.pid = self.pid == pid, pid
        return "" if again else f"{process}{DUMPED}"[:MOST_SAID]

    def end_of_file(self) -> None:
        """Take nothing of the next file for a part of this one's last dump."""
        self.foreign = self.other = self.named = self.dumped = False

    def notes(self) -> Iterator[str]:
        """Yield what was left out."""
        if self.passed_over:
            pids = ", ".join(map(str, sorted(self.passed_over)[:20]))
            yield f"more than one QEMU dumped core: that of process {self.pid} was read, not those of {pids}"


def _is_ours(name: str) -> bool:
    return name.rpartition("/")[2].startswith(OURS)
