"""Reads /proc/PID/stack as people print it: the kernel's functions that each thread sleeps in."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import field, replace

from autopsy.dataclass import dataclass
from autopsy.incoming.texts.kernel_log import MOST_DEEP, MOST_TASKS, HungTask

LINE = re.compile(r"\[<[0-9a-fx]{0,18}>\] ([A-Za-z_][\w.]{0,100})(\+0x[0-9a-f]{1,8}/0x[0-9a-f]{1,8})?")
WHOSE = re.compile(r"/proc/(\d{1,9})/(?:task/(\d{1,9})/)?(?:stack|wchan)?")
NAMED = re.compile(r"^\W*(\d{1,9})\W+(?:\()?([A-Za-z][\w/ :.-]{0,20}?)\)?\W*$")
# Where a thread sleeps that nobody has work for, or that a signal wakes.
LIGHT = (
    *("futex_", "__futex_", "do_poll", "do_sys_poll", "poll_schedule", "ep_poll", "do_epoll", "do_select", "kvm_"),
    *("hrtimer_", "do_nanosleep", "do_sigtimedwait", "unix_stream_", "sk_wait", "__skb_wait", "pipe_", "anon_pipe_"),
    *("wait_woken", "do_wait", "io_cqring_wait", "inet_csk_", "do_signal_stop", "vcpu_", "schedule_hrtimeout"),
)


@dataclass(slots=True)
class ProcStacks:
    """Such a text on its way through; one look, for nothing tells when each line was read."""

    tasks: dict[int, HungTask] = field(default_factory=dict)
    current: HungTask | None = None
    tid: int = 0
    tgid: int = 0
    name: str = ""
    bare: int = 0

    def feed(self, line: str) -> bool:
        """Take one line; return whether it is of a stack in the kernel."""
        bare = line.strip(" \t")
        found = LINE.match(bare)
        if found is None:
            self.current = None
            self._heads(bare)
            return False
        if found[2] is None or len(self.tasks) >= MOST_TASKS:
            return self.current is not None
        if self.current is None:
            self._begin()
        if self.current is not None and len(self.current.stack) < MOST_DEEP:
            self.current.stack.append(f"{found[1]}{found[2]}")
        return True

    def _heads(self, line: str) -> None:
        if (whose := WHOSE.search(line)) is not None:
            self.tgid, self.tid, self.name = int(whose[1]), int(whose[2] or whose[1]), ""
        elif (named := NAMED.match(line)) is not None:
            self.tid, self.name = int(named[1]), named[2].strip()
        elif line:
            self.tid, self.name = 0, ""

    def _begin(self) -> None:
        """Begin the next thread's: one that nothing named has a number of its own."""
        tid, self.tid = self.tid, 0
        if not tid or tid in self.tasks:
            self.bare += 1
            while self.bare in self.tasks:
                self.bare += 1
            tid = self.bare
        self.current = self.tasks[tid] = HungTask(self.name or "qemu", tid, 0, self.tgid)
        self.name = ""

    def beside(self, known: Iterable[int]) -> tuple[HungTask, ...]:
        """Return the threads that the kernel's log tells nothing of, each in the state that its sleep has."""
        others = set(self.tasks) - set(known)
        return tuple(
            replace(task, state="S" if task.stack and task.stack[0].startswith(LIGHT) else "D")
            for tid, task in self.tasks.items()
            if tid in others
        )

    def stop(self) -> None:
        """Take no line of the next file for the rest of this one's."""
        self.current, self.tid, self.tgid, self.name = None, 0, 0, ""
