"""Tells from the samples of one VM what stands still, and what only looks so: pure, fed by whoever samples."""

from __future__ import annotations

from collections import deque
from dataclasses import field, replace

from autopsy.bundle.ring import RingSample
from autopsy.dataclass import dataclass
from autopsy.watch.coroutine_look import CoroutineLook
from autopsy.watch.model import StallKind, WatchState
from autopsy.watch.sample import Halted, StillThread, VmSample
from autopsy.watch.tokens import MOST_LAG_NS, SECOND, RequestsInFlight, RequestTokens

SUSPECT_NS = 3 * SECOND
EXPECTED_NS = 2 * SECOND  # between two samples
STARVED_PART = 0.5  # of the time between two samples, in which a VM was starved or the watch held: it is not counted
SUSPENDED_NS = SECOND // 2  # by which BOOTTIME runs ahead of MONOTONIC between two samples, and the host has slept
PAUSED_NS = 3 * SECOND
IN_POLL = ("do_sys_poll", "do_poll", "poll_schedule_timeout", "do_epoll_wait", "ep_poll", "do_select", "sigtimedwait")
WAITS_FOR_CLIENT = ("inet_csk_accept", "unix_accept", "skb_wait_for_more_packets", "__skb_wait_for_more_packets")
VCPU_WAITS = ("kvm", "mshv", "futex_", "do_signal_stop", "ptrace_stop", "do_exit")
OF_REQUESTS = frozenset({StallKind.DISK, StallKind.REQUEST})
BY_SIGNAL = ("do_signal_stop", "ptrace_stop", "do_exit", "do_group_exit")


@dataclass(frozen=True, slots=True)
class StandStill:
    """Something that stands.

    `age_ns` is for how long, as far as was seen; between the two samples of which the latter showed it first it may
    have stood already, which makes `most_ns`. `began_ns` and `moving_ns` are the CLOCK_MONOTONIC of its first sight,
    and of the last one without it.
    """

    kind: StallKind
    age_ns: int
    most_ns: int
    began_ns: int
    moving_ns: int


@dataclass(frozen=True, slots=True)
class JudgedSample:
    """What one sample adds up to.

    `stands` is the gravest of what stands for as long as is suspicious; its `most_ns` is that of all.
    """

    state: WatchState
    stands: StandStill | None = None
    requests: int | None = None
    unmoved: int = 0
    oldest_ns: int = 0
    threads_in_d: int = 0


@dataclass(slots=True)
class VmJudge:
    """What is remembered of one VM; `judge` takes one sample after the other.

    Ages are told on a clock of its own, which stands while the VM is stopped or starved, or we are.
    """

    tokens: RequestTokens = field(default_factory=RequestTokens)
    requests: RequestsInFlight = field(default_factory=RequestsInFlight)
    ring: deque[RingSample] = field(default_factory=deque)
    last_ns: int = 0
    lost_ns: int = 0
    suspended_ns: int = 0
    held_ns: int = 0
    stood: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    counted: bool = False
    clear: bool = True
    came_round: bool = False

    def judge(self, sample: VmSample) -> JudgedSample:
        """Return what a sample means beside those before it."""
        passed = sample.at_ns - self.last_ns if self.last_ns else 0
        starved = passed > 0 and sample.starved_ns >= STARVED_PART * passed
        held = sample.held_ns - self.held_ns
        # CLOCK_MONOTONIC stands while the host is suspended, mostly; nor is counted what lies around it, as disks wake.
        woken = sample.suspended_ns - self.suspended_ns > SUSPENDED_NS or 0 < STARVED_PART * passed <= held
        self.suspended_ns, self.held_ns = sample.suspended_ns, sample.held_ns
        lost = passed if sample.halted or starved or woken else min(passed, max(held, passed - 2 * EXPECTED_NS))
        self.last_ns, self.lost_ns = sample.at_ns, self.lost_ns + lost
        now = sample.at_ns - self.lost_ns
        if sample.look is not None:
            self.clear = sample.look.clear
            if self.clear:
                self.requests = self.tokens.update(sample.look, now)
                self.counted = True
        if sample.main is None or sample.main.wchan.startswith(IN_POLL):
            self.came_round = True
        state = self._state(sample, starved=starved)
        stands = None if sample.halted or starved else self._gravest(sample, now)
        judged = JudgedSample(
            state,
            stands,
            requests=self.requests.in_flight if self.counted and self.clear else None,
            unmoved=len(self.requests.unmoved),
            oldest_ns=self._oldest(now),
            threads_in_d=len(sample.asleep),
        )
        self._remember(sample, judged)
        return judged

    @property
    def wants_look(self) -> bool:
        """Return whether requests stand, so that the next look should come soon."""
        return bool(self.requests.unmoved)

    def look_again(self, look: CoroutineLook, at_ns: int) -> None:
        """Take one more look between two samples."""
        self.requests = self.tokens.update(look, at_ns - self.lost_ns)

    def _oldest(self, now: int) -> int:
        return max(0, now - self.requests.before) if self.requests.unmoved else 0

    def _gravest(self, sample: VmSample, now: int) -> StandStill | None:
        candidates = (
            self._main_loop(sample, now),
            self._requests(now),
            self._vcpus(sample, now),
            self._asleep(sample, now),
            self._uncounted(sample),
        )
        standing = [stall for stall in candidates if stall is not None and stall.age_ns >= SUSPECT_NS]
        if not standing:
            return None
        # A main loop that comes to wait for a request that stands already is one stall, and as old as that.
        most_ns = max(stall.most_ns for stall in standing)
        return self._of_the_host(replace(standing[0], most_ns=most_ns), sample)

    def _uncounted(self, sample: VmSample) -> StandStill | None:
        """Return for how long a device below its disks has completed nothing, where its requests cannot be counted."""
        if self.clear and not sample.hung:
            return None
        began = sample.at_ns - sample.host.unmoved_ns
        age = sample.host.unmoved_ns
        return StandStill(StallKind.HOST, age, age + EXPECTED_NS, began, began)

    def _of_the_host(self, stall: StandStill, sample: VmSample) -> StandStill:
        """Call requests the host's that have stood since a device below its disks ceased to complete any, or later."""
        since = sample.at_ns - sample.host.unmoved_ns
        held = sample.host.unmoved_ns >= SUSPECT_NS and since <= stall.began_ns + MOST_LAG_NS
        return replace(stall, kind=StallKind.HOST) if held and stall.kind in OF_REQUESTS else stall

    def _main_loop(self, sample: VmSample, now: int) -> StandStill | None:
        """Return for how long the main loop has been somewhere where it is not while it waits for events."""
        main = sample.main
        stuck = (
            main is not None
            and (main.state == "D" or (main.state == "S" and bool(main.wchan)))
            and not main.wchan.startswith((*IN_POLL, *WAITS_FOR_CLIENT, *BY_SIGNAL))
            and (self.came_round or main.state == "D")  # before it first comes round, a VM that starts may take long
        )
        return self._since("main", StallKind.MAIN_LOOP, sample, now, main if stuck else None)

    def _vcpus(self, sample: VmSample, now: int) -> StandStill | None:
        """Return for how long no vCPU has run: all wait for one and the same lock, or one sleeps in a system call.

        A paused vCPU, and an idle one of TCG, waits for a condition; an idle one of KVM inside of KVM.
        """
        locks = {vcpu.mutex for vcpu in sample.vcpus}
        all_stand = bool(sample.vcpus) and len(sample.vcpus) == sample.vcpu_count
        held_off = all_stand and len(locks) == 1 and 0 not in locks
        calls = [vcpu for vcpu in sample.vcpus if vcpu.wchan and not vcpu.wchan.startswith(VCPU_WAITS)]
        newest = min(sample.vcpus if held_off else calls, key=lambda thread: thread.still_ns, default=None)
        return self._since("vcpus", StallKind.VCPUS, sample, now, newest)

    def _asleep(self, sample: VmSample, now: int) -> StandStill | None:
        """Return for how long a thread has slept where not even a signal wakes it: it serves a request."""
        oldest = max(sample.asleep, key=lambda thread: thread.still_ns, default=None)
        return self._since("asleep", StallKind.REQUEST if sample.ran else StallKind.DISK, sample, now, oldest)

    def _requests(self, now: int) -> StandStill | None:
        if not self.requests.unmoved:
            return None
        age = self._oldest(now)
        standing = sum(age >= SUSPECT_NS for age in self.requests.unmoved)
        others_move = self.requests.in_flight > standing or now - self.requests.moved_at < SUSPECT_NS
        kind = StallKind.REQUEST if others_move else StallKind.DISK
        most = max(age, now - self.requests.earliest)
        return StandStill(kind, age, most, self.requests.since + self.lost_ns, self.requests.before + self.lost_ns)

    def _since(
        self, what: str, kind: StallKind, sample: VmSample, now: int, thread: StillThread | None
    ) -> StandStill | None:
        """Count how long a thread has stood, without the time in which nobody could have moved."""
        if thread is None:
            self.stood.pop(what, None)
            return None
        ran_at = sample.at_ns - thread.still_ns
        before = self.stood.get(what)
        if before is None or before[:2] != (thread.tid, ran_at):
            before = (thread.tid, ran_at, now - thread.still_ns)
        self.stood[what] = before
        age = now - before[2]
        return StandStill(kind, age, age + thread.lag_ns, ran_at, ran_at)

    def _state(self, sample: VmSample, *, starved: bool) -> WatchState:
        known = (
            (sample.halted is Halted.DEAD or (sample.hung and not sample.halted), WatchState.UNREADABLE),
            (sample.halted is not None, WatchState.STOPPED),
            (starved, WatchState.STARVED),
            (sample.migrating, WatchState.MIGRATING),
            (self._is_paused(sample), WatchState.PAUSED),
            (not self.clear, WatchState.UNCLEAR),
        )
        return next((state for holds, state in known if holds), WatchState.WATCHED)

    def _is_paused(self, sample: VmSample) -> bool:
        """Return whether every vCPU of KVM has waited for a condition for a while: an idle one waits inside of KVM."""
        return (
            sample.vcpu_count > 0
            and len(sample.vcpus) == sample.vcpu_count
            and all(
                vcpu.comm.endswith("KVM")
                and vcpu.wchan.startswith("futex_")
                and not vcpu.mutex
                and vcpu.still_ns >= PAUSED_NS
                for vcpu in sample.vcpus
            )
        )

    def _remember(self, sample: VmSample, judged: JudgedSample) -> None:
        self.ring.append(
            RingSample(
                monotonic_ns=sample.at_ns,
                state=judged.state.value,
                main_state=sample.main.state if sample.main else "",
                main_wchan=sample.main.wchan if sample.main else "",
                threads=sample.threads,
                threads_ran=sample.ran,
                threads_in_d=len(sample.asleep),
                cpu_ms=round(sample.cpu_ns / 1e6, 1),
                run_delay_ms=round(sample.delay_ns / 1e6, 1),
                read_bytes=sample.read_bytes,
                write_bytes=sample.write_bytes,
                requests=judged.requests,
                moved=self.requests.moved,
                unmoved=judged.unmoved,
                oldest_unmoved_ms=judged.oldest_ns // 1_000_000,
                eventfds=sample.eventfds,
                host_requests=sample.host.in_flight,
                host_unmoved_ms=sample.host.unmoved_ns // 1_000_000,
            )
        )
