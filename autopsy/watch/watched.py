"""One VM that is watched: its open files, what is known of it, and when it is to be looked at again."""

from __future__ import annotations

from collections import deque
from dataclasses import field, replace

from autopsy.bundle.ring import RingSample
from autopsy.dataclass import dataclass
from autopsy.watch.discovery import FoundVm
from autopsy.watch.judge import IN_POLL, JudgedSample, VmJudge
from autopsy.watch.looker import Looked, LookQuestion, NoLook
from autopsy.watch.model import WatchState
from autopsy.watch.ring import trimmed
from autopsy.watch.sample import VmSample
from autopsy.watch.sampler import VmFiles
from autopsy.watch.signs.host_devices import HostDevices, HostRequests
from autopsy.watch.signs.monitors import AskableVm
from autopsy.watch.stages import VmStages
from autopsy.watch.tokens import SECOND

COST_SHARE = 30  # times what it took last passes before the next look at a VM of very many requests
CLOSE_NS = SECOND  # between two looks at what is suspected
FIRST_BACKOFF_NS, MOST_BACKOFF_NS = 5 * SECOND, 60 * SECOND
SOON_NS = 2 * SECOND
SLACK_NS = SECOND // 2  # a round may come a little early, after one that came late
RUNS = frozenset({WatchState.WATCHED, WatchState.UNCLEAR})  # its guest, as far as can be told


@dataclass(slots=True)
class SampledVm:
    """A VM with all that is kept of it between two rounds."""

    vm: FoundVm
    files: VmFiles
    stages: VmStages
    look_every_ns: int
    judge: VmJudge = field(default_factory=VmJudge)
    judged: JudgedSample = field(default_factory=lambda: JudgedSample(WatchState.WATCHED))
    sample: VmSample | None = None
    looked_ns: int = 0
    blind_until_ns: int = 0
    backoff_ns: int = 0
    took_ns: int = 0
    refused: bool = False
    has_run: bool = True

    @property
    def suspect(self) -> bool:
        """Return whether something of it stands for too long already."""
        return self.stages.episode is not None

    @property
    def host_unmoved_seconds(self) -> float | None:
        """Return for how long a device of the host's below its disks has completed nothing, None without one."""
        host = self.sample.host if self.sample is not None else HostRequests()
        return None if host.in_flight is None else host.unmoved_ns / SECOND

    @property
    def askable(self) -> AskableVm:
        """Return whether its monitor may be asked now, and what its vCPUs have run so far."""
        comes_round = self.sample is not None and (
            self.sample.main is None or self.sample.main.wchan.startswith(IN_POLL)
        )
        runs = self.judged.state in RUNS
        calm = runs and comes_round and not self.suspect and not self.judge.wants_look and not self.judged.threads_in_d
        return AskableVm(self.vm.key, calm=calm, runs=runs, vcpu_ns=self.files.vcpu_ns)

    @property
    def ring(self) -> deque[RingSample]:
        """Return its last minute of samples."""
        trimmed(self.judge.ring, self.judge.last_ns)
        return self.judge.ring

    def take_sample(self, now_ns: int, devices: HostDevices, held_ns: int, *, closely: bool) -> bool:
        """Take the cheap signs; return whether the process is still there.

        `held_ns` is for how long the watch itself has been held since it began.
        """
        sample = self.files.sample(now_ns, closely=closely or self.suspect or self.judge.wants_look)
        if sample is None:
            self.sample = None
            return False
        host = devices.of(self.vm.pid, now_ns)
        self.sample = replace(sample, host=host, held_ns=held_ns)
        return True

    def question(self, now_ns: int, *, closely: bool) -> LookQuestion | None:
        """Return the question to ask of its coroutines now, None where it need not be looked at yet."""
        if self.sample is None or now_ns < self.blind_until_ns:
            return None
        self.has_run |= self.sample.ran > 0
        every = self.look_every_ns
        if self.suspect or self.judge.wants_look:
            every = CLOSE_NS
        elif self.has_run or self.judge.requests.in_flight:
            every = min(every, SOON_NS)  # where no thread has run, no coroutine has
        every = max(every, self.took_ns * COST_SHARE)
        if not closely and self.looked_ns and now_ns - self.looked_ns < every - SLACK_NS:
            return None
        return LookQuestion(self.vm.pid, self.vm.start_ticks, self.sample.size)

    def take_look(self, looked: Looked | None, now_ns: int) -> None:
        """Judge the sample beside a look at the coroutines, or without one."""
        assert self.sample is not None  # noqa: S101 - a look is of a sample
        hung = now_ns < self.blind_until_ns
        look = None
        match looked:
            case NoLook():
                self.refused = not looked.hung
                self.backoff_ns = min(max(2 * self.backoff_ns, FIRST_BACKOFF_NS), MOST_BACKOFF_NS)
                self.blind_until_ns = now_ns + self.backoff_ns
                hung = True
            case None:
                pass
            case _:
                self.looked_ns, self.backoff_ns, self.refused = now_ns, 0, False
                self.took_ns, self.has_run = looked.took_ns, False
                look = looked
        self.sample = replace(self.sample, look=look, hung=hung)
        self.judged = self.judge.judge(self.sample)

    def look_again(self, looked: Looked, now_ns: int) -> None:
        """Take one more look within the same round: who works for a guest that writes without pause is caught at it."""
        if not isinstance(looked, NoLook) and looked.clear:
            self.judge.look_again(looked, now_ns)
