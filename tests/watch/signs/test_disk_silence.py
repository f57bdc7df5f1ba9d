"""A disk that falls silent while its guest goes on is suspicious, and nothing else is."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from autopsy.watch.model import MonitorOutcome, SilentDisk
from autopsy.watch.signs.disk_silence import HABIT, SECOND, DiskSilence
from autopsy.watch.signs.monitor_asker import MonitorAnswer, MonitorAsker, Process
from autopsy.watch.signs.monitors import AskableVm, MonitorAsking, Monitors, monitors_of

VM = (42, 7)
MINUTE = 60 * SECOND
SILENT = 180.0
AT_WORK = [(1, 0.3)] * (HABIT + 1)  # requests completed and share of a processor, a minute each


def follow(minutes: Iterable[tuple[int, float]], silence: DiskSilence | None = None) -> tuple[SilentDisk, ...]:
    """Tell minute by minute how many requests a disk completed, and what the vCPUs took of a processor."""
    silence = silence or DiskSilence()
    at = completed = vcpu = 0
    found: tuple[SilentDisk, ...] = ()
    for requests, share in minutes:
        at, completed, vcpu = at + MINUTE, completed + requests, vcpu + int(share * MINUTE)
        found = silence.update(at, vcpu, {"sd0": completed}, SILENT)
    return found


def test_a_disk_that_falls_silent_while_the_guest_goes_on_is_told_with_its_figures() -> None:
    (disk,) = follow([*AT_WORK, *[(0, 0.5)] * 4])
    assert disk == SilentDisk(name="sd0", seconds=240, vcpu_share=0.5, vcpu_share_before=0.3)


@pytest.mark.parametrize(
    ("why", "minutes"),
    [
        ("it is not silent for long", [*AT_WORK, *[(0, 0.5)] * 2]),
        ("it works", [(1, 0.3)] * 30),
        ("it never worked", [(0, 0.9)] * 30),
        ("it is not known to work", [*AT_WORK[:HABIT], *[(0, 0.5)] * 30]),
        ("the guest has gone idle", [*AT_WORK, *[(0, 0.1)] * 30]),
        ("the guest idles, and did before", [*[(1, 0.001)] * 9, *[(0, 0.001)] * 30]),
        ("it was silent for as long before", [*AT_WORK, *[(0, 0.5)] * 4, (1, 0.5), *[(0, 0.5)] * 13]),
    ],
)
def test_what_is_no_such_silence_is_not_told(why: str, minutes: list[tuple[int, float]]) -> None:
    assert follow(minutes) == (), why


def test_a_silence_that_was_told_and_came_to_an_end_makes_the_next_one_three_times_longer() -> None:
    before = [*AT_WORK, *[(0, 0.5)] * 4, (1, 0.5)]
    assert follow(before) == ()
    assert follow([*before, *[(0, 0.5)] * 15])


def test_a_pause_of_the_vm_counts_as_no_silence() -> None:
    silence = DiskSilence()
    follow(AT_WORK, silence)
    silence.begin_anew()
    later = [(at * MINUTE, at * MINUTE // 2) for at in range(100, 103)]
    assert [silence.update(*at, {"sd0": len(AT_WORK)}, SILENT) for at in later] == [()] * 3


class AskedInTest(MonitorAsker):
    """Answers what a test says, in the round after the question."""

    def __init__(self) -> None:
        self.put: list[Process] = []
        self.next = MonitorAnswer(MonitorOutcome.COUNTED, {"sd0": 1})
        self.due: list[tuple[Process, MonitorAnswer]] = []

    @property
    def is_busy(self) -> bool:
        return False

    def ask(self, processes: object) -> None:
        assert isinstance(processes, list)
        self.put += processes
        self.due = [(process, self.next) for process in processes]

    def answers(self) -> list[tuple[Process, MonitorAnswer]]:
        due, self.due = self.due, []
        return due


def asked_in(minutes: int, asker: AskedInTest, **vm: object) -> int:
    """Go round every two seconds for so long; return how often the VM was asked."""
    monitors = Monitors(MonitorAsking(ask_blockstats=True), asker)
    known = {"calm": True, "runs": True, "vcpu_ns": 5} | vm
    for at in range(0, 60 * minutes, 2):
        monitors.follow([AskableVm(VM, **known)], SECOND * (1000 + at))  # type: ignore[arg-type]  # by name
    return len(asker.put)


def test_a_vm_is_asked_once_a_minute_and_only_while_nothing_of_it_stands() -> None:
    assert asked_in(10, AskedInTest()) == 10
    assert asked_in(10, AskedInTest(), calm=False) == 0
    assert asked_in(10, AskedInTest(), vcpu_ns=None) == 0


@pytest.mark.parametrize("outcome", [MonitorOutcome.SILENT, MonitorOutcome.HUNG, MonitorOutcome.REFUSED])
def test_a_monitor_that_does_not_answer_is_asked_more_and_more_seldom(outcome: MonitorOutcome) -> None:
    asker = AskedInTest()
    asker.next = MonitorAnswer(outcome)
    assert asked_in(31, asker) == 5  # again after 2, 4, 8 and 16 minutes


def test_nobody_is_asked_by_default() -> None:
    assert monitors_of(MonitorAsking(), lambda _pid, _ticks: MonitorAnswer(MonitorOutcome.NONE)) is None
    assert monitors_of(MonitorAsking(ask_blockstats=True), None) is None
