"""A process of ours that asks VMs' monitors, beside the rounds: whatever a monitor does, no round waits for it."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import field

import msgspec

from autopsy.bundle.manifest import LeftBehind
from autopsy.dataclass import dataclass
from autopsy.linux.tasks.forking import (
    Child,
    Overdue,
    PipeEnds,
    end,
    fork,
    framed,
    has_answered,
    has_ended,
    receive_framed,
    send,
)
from autopsy.watch.model import MonitorOutcome

PATIENCE = 10.0  # seconds for one monitor; who asks it gives up long before that
MOST_STUCK = 4  # processes of ours that hang in the kernel, before no further one is started
MOST_ANSWER = 1 << 20
END_SECONDS = 0.1
AT_ONCE = 0.5  # for the rest of an answer that has begun to come

Process = tuple[int, int]  # its PID, and when it started


class MonitorAnswer(msgspec.Struct, frozen=True, array_like=True):
    """What came of asking one VM. `completed` is how many requests each of its disks has completed."""

    outcome: MonitorOutcome
    completed: dict[str, int] = {}


CountCompleted = Callable[[int, int], MonitorAnswer]


@dataclass(slots=True)
class MonitorAsker:
    """Has a child ask monitors one after the other by `count`, which runs there alone. Close it after use.

    Concurrency: it forks, so it is for a process with one thread.
    """

    count: CountCompleted
    child: Child | None = None
    asked: deque[Process] = field(default_factory=deque)
    heard_at: float = 0.0
    stuck: list[LeftBehind] = field(default_factory=list)

    @property
    def is_busy(self) -> bool:
        """Return whether there is still a question that was not answered."""
        return bool(self.asked)

    def ask(self, processes: Sequence[Process]) -> None:
        """Put questions about VMs, if none is under way."""
        if self.asked or not processes:
            return
        if self.child is None:
            self.stuck = [left_behind for left_behind in self.stuck if not has_ended(left_behind)]
            if len(self.stuck) >= MOST_STUCK:
                return
            with contextlib.suppress(OSError):
                self.child = fork(self._answer, own_session=True)
        if self.child is None:
            return
        self.asked.extend(processes)
        self.heard_at = time.monotonic()
        try:
            send(self.child.questions, framed(msgspec.msgpack.encode(list(processes))))
        except OSError:
            self._abandon()

    def answers(self) -> list[tuple[Process, MonitorAnswer]]:
        """Return the answers that have come since; waits for none."""
        heard = []
        while self.asked and self.child is not None:
            try:
                if not has_answered(self.child):
                    if time.monotonic() - self.heard_at > PATIENCE:
                        heard.append((self.asked[0], MonitorAnswer(MonitorOutcome.HUNG)))
                        self._abandon()
                    break
                answer = msgspec.msgpack.decode(
                    receive_framed(self.child.answers, MOST_ANSWER, time.monotonic() + AT_ONCE), type=MonitorAnswer
                )
            except (Overdue, EOFError, OSError, msgspec.MsgspecError):
                heard.append((self.asked[0], MonitorAnswer(MonitorOutcome.HUNG)))
                self._abandon()
                break
            self.heard_at = time.monotonic()
            heard.append((self.asked.popleft(), answer))
        return heard

    def close(self) -> None:
        """End the child, and with it any connection that it has; one that cannot be ended is left to the kernel."""
        self._abandon()

    def _abandon(self) -> None:
        child, self.child = self.child, None
        self.asked.clear()
        if child is not None and (left_behind := end(child, answered=True, seconds=END_SECONDS)) is not None:
            self.stuck.append(left_behind)

    def _answer(self, ends: PipeEnds) -> int:
        """Be the child: answer until nobody asks any more."""
        while True:
            message = receive_framed(ends.hears, MOST_ANSWER)
            for pid, start_ticks in msgspec.msgpack.decode(message, type=list[Process]):
                send(ends.tells, framed(msgspec.msgpack.encode(self.count(pid, start_ticks))))
