"""Notices when the target's process ends during a capture, and after which question or step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from autopsy.bundle import layout
from autopsy.bundle.records import QmpExchange
from autopsy.bundle.vm_end import VmEnd
from autopsy.capture import exitinfo
from autopsy.capture.qmp.commands import GREETING
from autopsy.target.target import Target, is_alive

SOON_NS = 1_000_000_000  # a question that was put or answered so shortly before the end is told with it
TELL_SECONDS = 0.5  # for its parent to wait for it: some kernels tell how it ended only then
PAUSE_SECONDS = 0.02
ASKING = (
    *(layout.QUERY_STATUS, layout.QUERY_BLOCK, layout.THROTTLE_GROUPS, layout.SECOND_EXPOSURE),
    layout.UNSTABLE,
)
PUT = frozenset({"answered", "error", "no answer"})


class EndWatch:
    """Looks at the pidfd whenever it is told to. `end` is what was found, None while the VM lives."""

    def __init__(self, target: Target) -> None:
        self.end: VmEnd | None = None
        self._target = target
        self._step = layout.STEPS[0]
        self._alive_ns = time.monotonic_ns()
        self._seen_ns = 0
        # What dumped its core before we came does not end because of anything that we do.
        self._dumped_before = exitinfo.dumps_core(target)

    def began(self, step: str) -> None:
        """Look, then take note that a step begins."""
        self.look()
        if not self._seen_ns:
            self._step = step

    def look(self) -> None:
        """Look whether it lives; takes microseconds."""
        if self._seen_ns:
            return
        now = time.monotonic_ns()
        if self._is_over():
            self._seen_ns = now
        else:
            self._alive_ns = now

    def _is_over(self) -> bool:
        if not is_alive(self._target):
            return True
        return not self._dumped_before and exitinfo.dumps_core(self._target)

    def conclude(self, work: Path) -> VmEnd | None:
        """Look, and return the end as far as it is known by now; `work` is where the questions are written down."""
        self.look()
        if not self._seen_ns:
            return None
        end = self.end or self._placed(work)
        if end.how in {"unknown", "dumping core"}:
            vm_exit = self._told(TELL_SECONDS if self.end is None else 0.0)
            end = msgspec.structs.replace(end, how=vm_exit.how, number=vm_exit.number, core=vm_exit.core)
        self.end = end
        return end

    def _told(self, seconds: float) -> exitinfo.Exit:
        if is_alive(self._target):
            return exitinfo.Exit("dumping core")
        give_up = time.monotonic() + seconds
        while (vm_exit := exitinfo.exit_of(self._target)).how == "unknown" and time.monotonic() < give_up:
            time.sleep(PAUSE_SECONDS)
        return vm_exit

    def _placed(self, work: Path) -> VmEnd:
        """Return after what it ended: the last question if that was put shortly before, else the step."""
        asked = max(_questions(work), key=lambda exchange: exchange.asked_ns, default=None)
        here = VmEnd(after=self._step, step=self._step, alive_ns=self._alive_ns, seen_ns=self._seen_ns)
        if asked is None or _end_of(asked) < self._alive_ns - SOON_NS:
            return here
        return msgspec.structs.replace(here, after=asked.question, question=True, answered=asked.outcome != "no answer")


def _questions(work: Path) -> Iterator[QmpExchange]:
    """Yield what was put to the monitor; a last line that was cut short is left out."""
    for step in ASKING:
        try:
            lines = (work / layout.evidence(step, layout.QMP)).read_bytes().splitlines()
        except OSError:
            continue
        for line in lines:
            try:
                exchange = msgspec.json.decode(line, type=QmpExchange)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                break
            if exchange.outcome in PUT and exchange.question != GREETING:
                yield exchange


def _end_of(exchange: QmpExchange) -> int:
    return exchange.asked_ns + int(exchange.ms * 1e6)
