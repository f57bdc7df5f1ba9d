"""Has the evidence so far judged while the second look waits, for a person who watches; nothing rests on it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from autopsy.linux.child import ChildFailed, ChildTimedOut, collect, spawn
from autopsy.linux.tasks.behind import step_back
from autopsy.linux.tasks.forking import Child, end, has_answered

ANSWER_SECONDS = 1.0  # once the first of its bytes is there


def _behind(judge: Callable[[], bytes]) -> bytes:
    step_back()  # for good: nothing rests on it
    return judge()


class Preview:
    """One child that judges; `look` returns its words once, when they are there, and never waits for them."""

    def __init__(self, judge: Callable[[], bytes]) -> None:
        self._child: Child | None = None
        try:
            self._child = spawn(partial(_behind, judge))
        except ChildFailed:
            return

    def look(self) -> str:
        """Return what it found, empty while it works and ever after."""
        if self._child is None or not has_answered(self._child):
            return ""
        child, self._child = self._child, None
        try:
            return collect(child, ANSWER_SECONDS).decode("utf-8", "replace")
        except (ChildTimedOut, ChildFailed):
            return ""

    def close(self) -> None:
        """End it, whether or not it has come to an end."""
        if self._child is not None:
            child, self._child = self._child, None
            end(child)
