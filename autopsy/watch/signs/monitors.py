"""When each VM's monitor is asked what its disks have completed, what came of it, and what that makes suspicious."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import field
from typing import Annotated

import msgspec

from autopsy.dataclass import dataclass
from autopsy.watch.model import MonitorOutcome, SilentDisk
from autopsy.watch.signs.disk_silence import SECOND, DiskSilence
from autopsy.watch.signs.monitor_asker import CountCompleted, MonitorAnswer, MonitorAsker, Process

MOST_AT_ONCE = 32  # VMs that are asked between two rounds
MOST_PAUSE = 64  # times the usual time, where a monitor does not answer
SPARED = frozenset({MonitorOutcome.SILENT, MonitorOutcome.HUNG, MonitorOutcome.REFUSED})  # asked more and more seldom


class MonitorAsking(msgspec.Struct, frozen=True, kw_only=True):
    """Whether monitors are asked, and how often; the configuration file says what each means."""

    ask_blockstats: bool = False
    every_seconds: Annotated[float, msgspec.Meta(ge=60, le=86400)] = 60.0
    silent_seconds: Annotated[float, msgspec.Meta(ge=60, le=86400)] = 180.0


@dataclass(frozen=True, slots=True)
class AskableVm:
    """One VM at one moment.

    `calm` says that nothing of it stands, and it may be asked; `runs` that its guest could ask for something. `vcpu_ns`
    is what its vCPUs have run so far, None where their threads cannot be told.
    """

    process: Process
    calm: bool
    runs: bool
    vcpu_ns: int | None


@dataclass(slots=True)
class AskedVm:
    """What is kept of one VM between two questions."""

    asked_ns: int = 0
    pause: int = 1
    vcpu_ns: int = 0
    silence: DiskSilence = field(default_factory=DiskSilence)
    silent: tuple[SilentDisk, ...] = ()
    outcomes: Counter[MonitorOutcome] = field(default_factory=Counter)


@dataclass(slots=True)
class Monitors:
    """Those of all VMs. Close it after use."""

    settings: MonitorAsking
    asker: MonitorAsker
    vms: dict[Process, AskedVm] = field(default_factory=dict)

    def follow(self, vms: Iterable[AskableVm], now_ns: int) -> None:
        """Take the answers that have come, and ask who is due; waits for nothing."""
        for process, answer in self.asker.answers():
            if process in self.vms:
                self._take(self.vms[process], answer)
        due = []
        for vm in vms:
            asked = self.vms.setdefault(vm.process, AskedVm())
            if not vm.runs:
                asked.silence.begin_anew()
                asked.silent = ()
            if vm.vcpu_ns is None or not vm.calm:
                continue
            every = self.settings.every_seconds * SECOND * asked.pause
            if not asked.asked_ns or now_ns - asked.asked_ns >= every:
                due.append((asked.asked_ns, vm))
        if due and not self.asker.is_busy:
            chosen = [vm for _, vm in sorted(due, key=lambda pair: pair[0])[:MOST_AT_ONCE]]
            for vm in chosen:
                self.vms[vm.process].asked_ns, self.vms[vm.process].vcpu_ns = now_ns, vm.vcpu_ns or 0
            self.asker.ask([vm.process for vm in chosen])

    def of(self, process: Process) -> AskedVm:
        """Return what is known of a VM."""
        return self.vms.get(process) or AskedVm()

    def forget(self, process: Process) -> None:
        """Let go of a VM."""
        self.vms.pop(process, None)

    def close(self) -> None:
        """Hang up, and end the process that asks."""
        self.asker.close()

    def _take(self, asked: AskedVm, answer: MonitorAnswer) -> None:
        asked.outcomes[answer.outcome] += 1
        asked.pause = min(asked.pause * 2, MOST_PAUSE) if answer.outcome in SPARED else 1
        if answer.outcome is MonitorOutcome.COUNTED:
            asked.silent = asked.silence.update(
                asked.asked_ns, asked.vcpu_ns, answer.completed, self.settings.silent_seconds
            )
        elif answer.outcome in SPARED:
            asked.silent = ()


def monitors_of(settings: MonitorAsking, count: CountCompleted | None) -> Monitors | None:
    """Return who asks monitors, None where none is to be asked: nothing of it is there then."""
    return Monitors(settings, MonitorAsker(count)) if settings.ask_blockstats and count is not None else None
