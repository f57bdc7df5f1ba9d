"""The rounds of the watch: sample, look closer where something stands, judge, and do what that calls for.

Nothing of a VM is stopped, asked or killed here. What may hang is read by a child that can be given up, so that one
VM's trouble costs only what is known of that VM.
"""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import field
from pathlib import Path

import msgspec

from autopsy.bundle.ring import Ring, RingHeader
from autopsy.dataclass import dataclass
from autopsy.linux.clocks import host
from autopsy.linux.files import read_kernel
from autopsy.store.entries import entries
from autopsy.store.place import store_path
from autopsy.store.removal import room
from autopsy.watch import ring
from autopsy.watch.config import WatchConfig
from autopsy.watch.discovery import Discovery, FoundVm, Key
from autopsy.watch.launch import CaptureLauncher
from autopsy.watch.limits import CaptureGate, Go
from autopsy.watch.looker import Looker, LookQuestion, NoLook
from autopsy.watch.model import CaptureResult, EndedCapture, Round, StallKind, WatchedVm, WatchState
from autopsy.watch.sampler import VmFiles
from autopsy.watch.signs.held import HeldTime
from autopsy.watch.signs.host_devices import HostDevices
from autopsy.watch.signs.monitor_asker import CountCompleted
from autopsy.watch.signs.monitors import AskedVm, Monitors, monitors_of
from autopsy.watch.stages import StallEpisode, VmCounts, VmStages, Wish, of_the_host
from autopsy.watch.tokens import SECOND
from autopsy.watch.watched import SampledVm

HUNG_TASKS = "/proc/sys/kernel/hung_task_detect_count"
STORE_SECONDS = 60.0
RING_SECONDS = 10.0
AGAIN = 2  # more looks in one round at what stands
AGAIN_SECONDS = 0.02
AGAIN_MOST_NS = SECOND // 100
ENOUGH = 0.9  # of the time between two rounds: a later one is late
MOST_DURATIONS = 10_000
SUSPECT_SECONDS = 1.0  # between two samples of what is suspected

Publish = Callable[[Round], object]


@dataclass(slots=True)
class StoreRoom:
    """What the store takes, looked at once a minute."""

    at: float = -STORE_SECONDS
    used: int = 0
    free: int = 0
    roomy: bool = True

    def refresh(self) -> None:
        """Look again, if it is time."""
        now = time.monotonic()
        if now - self.at < STORE_SECONDS:
            return
        self.at = now
        with suppress(OSError):
            room_left = room(entries(), store_path())
            self.used, self.free, self.roomy = room_left.used, room_left.free, room_left.free > room_left.keep


@dataclass(slots=True)
class Watch:
    """Everything that is watched. Close it after use. `left` is the last round of a watch that was killed.

    Concurrency: it forks, so it is for a process with one thread.
    """

    config: WatchConfig = field(default_factory=WatchConfig)
    discovery: Discovery = field(default_factory=Discovery)
    launcher: CaptureLauncher | None = None
    run_folder: int | None = None
    captures: bool = True
    sealed: Callable[[Path], object] = field(default=lambda _: None)  # told of each bundle; must not raise
    count_completed: CountCompleted | None = None  # asks a VM's monitor, where the configuration has that asked
    vms: dict[Key, SampledVm] = field(default_factory=dict)
    counts: defaultdict[str, VmCounts] = field(default_factory=lambda: defaultdict(VmCounts))
    results: defaultdict[str, Counter[CaptureResult]] = field(default_factory=lambda: defaultdict(Counter))
    bundles: dict[str, float] = field(default_factory=dict)
    durations: list[float] = field(default_factory=list)
    stops_ms: list[float] = field(default_factory=list)
    late: int = 0
    looker: Looker = field(default_factory=Looker)
    host_devices: HostDevices = field(default_factory=HostDevices)
    held: HeldTime = field(default_factory=HeldTime)
    store: StoreRoom = field(default_factory=StoreRoom)
    boot_id: str = field(default_factory=lambda: host().boot_id)
    gate: CaptureGate = field(init=False)
    monitors: Monitors | None = field(init=False)
    left: Round | None = None
    found_at: float = -1e9
    rings_at: dict[Key, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Take the limits from the configuration, and whether monitors are asked."""
        limits = self.config.captures
        self.monitors = monitors_of(self.config.monitor, self.count_completed)
        self.gate = CaptureGate(limits if self.captures else msgspec.structs.replace(limits, enabled=False))
        for vm in self.left.vms if self.left else ():
            age = time.time() - vm.last_bundle_at if vm.last_bundle_at is not None else -1.0
            if 0 <= age < limits.window_seconds:  # whoever kills the watch again and again has no more captures of it
                for _ in range(min(vm.captures.get(CaptureResult.SEALED, 0), limits.per_vm)):
                    self.gate.remember(vm.target, time.monotonic() - age)

    def close(self) -> None:
        """Let go of every file and child; captures under way go on."""
        for sampled in self.vms.values():
            sampled.files.close()
        self.vms = {}
        self.looker.close()
        if self.monitors is not None:
            self.monitors.close()

    def round(self, *, closely: bool = False) -> Round:
        """Sample every VM that is due, act on what stands, and return what is known now.

        `closely`: all are due, with their coroutines.
        """
        began = time.monotonic()
        self._discover(began)
        now_ns = time.monotonic_ns()
        due = [sampled for sampled in self.vms.values() if closely or self._is_due(sampled, now_ns)]
        for sampled in due:
            if not sampled.take_sample(now_ns, self.host_devices, self.held.total_ns, closely=closely):
                self._forget(sampled)
        due = [sampled for sampled in due if sampled.sample is not None]
        questions = {
            sampled.vm.pid: question
            for sampled in due
            if (question := sampled.question(now_ns, closely=closely)) is not None
        }
        looks = self.looker.look(questions.values()) if questions else {}
        for sampled in due:
            sampled.take_look(looks.get(sampled.vm.pid), now_ns)
        self._look_again([sampled for sampled in due if sampled.judged.stands is not None and sampled.vm.pid in looks])
        self._act(due, time.monotonic())
        if self.monitors is not None:
            self.monitors.follow([sampled.askable for sampled in self.vms.values() if not sampled.vm.domain], now_ns)
        return self._told(time.monotonic() - began)

    def run(self, publish: Sequence[Publish], stopped: Callable[[float], bool]) -> None:
        """Go round until `stopped`, which waits as long as it is told, and tells whether that is all."""
        every = self.config.sampling.every_seconds
        planned = time.monotonic()
        while True:
            if time.monotonic() > planned + every * ENOUGH:
                self.late += 1
            last = self.round()
            for tell in publish:
                tell(last)
            planned = max(planned + self._pause(), time.monotonic())
            if self.held.wait(stopped, max(0.0, planned - time.monotonic())):
                return

    def _discover(self, now: float) -> None:
        """Bring the VMs up to date: what has begun of late is looked for in each round, all others now and then."""
        if now - self.found_at < self.config.sampling.vms_every_seconds:
            self.discovery.refresh_young()
        else:
            self.found_at = now
            self.discovery.refresh()
            self.store.refresh()
        for key, vm in self.discovery.vms.items():
            if key in self.vms:
                self.vms[key].vm = vm  # its manager may have written down since whose it is
                continue
            with suppress(OSError):
                self.vms[key] = self._watched(vm)
        for key in self.vms.keys() - self.discovery.vms.keys():
            self._forget(self.vms[key])

    def _watched(self, vm: FoundVm) -> SampledVm:
        stages = VmStages(self.config.stages)
        every = int(self.config.sampling.requests_every_seconds * SECOND)
        return SampledVm(vm, VmFiles(vm.pid, vm.start_ticks), stages, every)

    def _forget(self, gone: SampledVm) -> None:
        """Let go of a VM whose process has ended, and have the looker do so."""
        self.vms.pop(gone.vm.key, None)
        self.discovery.vms.pop(gone.vm.key, None)
        gone.files.close()
        self.host_devices.forget(gone.vm.pid)
        if self.monitors is not None:
            self.monitors.forget(gone.vm.key)
        self.looker.look([LookQuestion(gone.vm.pid, gone.vm.start_ticks, 0, gone=True)])
        if (episode := gone.stages.episode) is not None and episode.stalled:
            self._ended(episode)
        if self.run_folder is not None and self.rings_at.pop(gone.vm.key, None) is not None and not gone.suspect:
            with suppress(OSError):
                os.unlink(ring.file_name(*gone.vm.key), dir_fd=self.run_folder)

    def _pause(self) -> float:
        """Return the seconds between two rounds as things stand."""
        every = self.config.sampling.every_seconds
        return min(every, SUSPECT_SECONDS) if any(sampled.suspect for sampled in self.vms.values()) else every

    def _is_due(self, sampled: SampledVm, now_ns: int) -> bool:
        """Return whether this round is nearer to its time than the next one is: a late round must not cost the next."""
        every = self.config.sampling.every_seconds
        every = min(every, SUSPECT_SECONDS) if sampled.suspect else every
        return now_ns - sampled.files.sampled_ns >= (every - self._pause() / 2) * SECOND

    def _look_again(self, standing: Iterable[SampledVm]) -> None:
        """Look at what stands several times more, at moments that no guest can be in step with."""
        questions = {
            sampled.vm.pid: LookQuestion(sampled.vm.pid, sampled.vm.start_ticks, sampled.sample.size)
            for sampled in standing
            if sampled.sample is not None and sampled.took_ns < AGAIN_MOST_NS
        }
        by_pid = {sampled.vm.pid: sampled for sampled in self.vms.values()}
        for number in range(AGAIN if questions else 0):
            time.sleep(AGAIN_SECONDS * (number + 1))
            now_ns = time.monotonic_ns()
            for pid, looked in self.looker.look(questions.values()).items():
                if not isinstance(looked, NoLook):
                    by_pid[pid].look_again(looked, now_ns)

    def _act(self, due: Sequence[SampledVm], now: float) -> None:
        for sampled in due:
            ended = sampled.stages.follow(sampled.judged, now)
            if ended is not None:
                self._ended(ended)
        stalled = [sampled.stages.episode for sampled in self.vms.values() if _is_long(sampled, self.config)]
        limits = self.config.captures
        storm = of_the_host([episode for episode in stalled if episode], limits.storm_vms, limits.storm_seconds)
        for sampled in due:
            if (episode := sampled.stages.episode) is None:
                self._keep_ring(sampled, now)
                continue
            if storm and not episode.stalled and _is_long(sampled, self.config):
                episode.kind = StallKind.HOST
            self._count(sampled, episode)
            self._write_ring(sampled)
            self._capture(sampled, episode, now)
        if self.launcher is not None:
            self._hear(self.launcher.ended())

    def _count(self, sampled: SampledVm, episode: StallEpisode) -> None:
        counts = self.counts[sampled.vm.target]
        if sampled.stages.is_called_stalled() and episode.stalled:
            counts.stalls[episode.stalled] += 1
        if episode.stalled:
            counts.add(episode.stalled, sampled.stages.newly_stalled_seconds())

    def _hear(self, ends: Iterable[EndedCapture]) -> None:
        """Count the captures that have ended."""
        for end in ends:
            self.results[end.vm][end.result] += 1
            if not end.light:
                self.gate.ended(end.vm)
            if end.result is not CaptureResult.FAILED:
                self.bundles[end.vm] = time.time()
                self.stops_ms.append(end.stop_ms)
                if end.bundle:
                    self.sealed(Path(end.bundle))

    def _capture(self, sampled: SampledVm, episode: StallEpisode, now: float) -> None:
        """Start what the stall calls for, if the limits let it."""
        wish = sampled.stages.wish()
        if wish is None or self.launcher is None:
            return
        # By the word that means it alone: who names his VM as another's is called uses up no limit of that one's.
        word, roomy = sampled.vm.target, self.store.roomy
        light = wish is Wish.LIGHT
        answer = (
            self.gate.may_keep_light(word, now, episode.seconds, room=roomy)
            if light
            else self.gate.may_capture(word, episode.kind, now, episode.seconds, room=roomy)
        )
        if isinstance(answer, Go):
            patient = episode.seconds >= self.config.captures.again_after_seconds
            if not self.launcher.start(word, sampled.vm.target, sampled.vm.pid, light=light, patient=patient):
                self.results[word][CaptureResult.FAILED] += 1
                if not light:
                    self.gate.ended(word)

    def _ended(self, episode: StallEpisode) -> None:
        self.durations.append(episode.seconds)
        del self.durations[:-MOST_DURATIONS]

    def _keep_ring(self, sampled: SampledVm, now: float) -> None:
        """Write the ring now and then while all is well, so that a capture by hand finds it, too."""
        if now - self.rings_at.get(sampled.vm.key, -1e9) >= RING_SECONDS:
            self._write_ring(sampled)

    def _write_ring(self, sampled: SampledVm) -> None:
        if self.run_folder is None:
            return
        self.rings_at[sampled.vm.key] = time.monotonic()
        stands = sampled.judged.stands if sampled.suspect else None
        header = RingHeader(
            pid=sampled.vm.pid,
            start_ticks=sampled.vm.start_ticks,
            boot_id=self.boot_id,
            began_monotonic_ns=stands.began_ns if stands else None,
            seen_moving_ns=stands.moving_ns if stands else None,
            kind=stands.kind.value if stands else "",
        )
        with suppress(OSError):  # a full /run costs the ring, not the watch
            ring.write(self.run_folder, Ring(header, tuple(sampled.ring)))

    def _told(self, seconds: float) -> Round:
        return Round(
            at=time.time(),
            vms=tuple(self._vm(sampled) for sampled in self.vms.values()),
            stall_durations=tuple(self.durations),
            suppressed=self.gate.suppressed,
            stops_ms=tuple(self.stops_ms),
            hung_tasks=_hung_tasks(),
            store_bytes=self.store.used,
            store_free_bytes=self.store.free,
            sample_seconds=seconds,
            samples_late=self.late,
        )

    def _vm(self, sampled: SampledVm) -> WatchedVm:
        vm, judged, episode = sampled.vm, sampled.judged, sampled.stages.episode
        counts = self.counts[vm.target]
        asked = self.monitors.of(vm.key) if self.monitors is not None else AskedVm()
        return WatchedVm(
            name=vm.name,
            target=vm.target,
            pid=vm.pid,
            start_ticks=vm.start_ticks,
            manager=vm.manager,
            domain=vm.domain,
            vmid=vm.vmid,
            uuid=vm.uuid,
            qemu_version=vm.qemu_version,
            state=WatchState.UNREADABLE if sampled.refused else judged.state,
            suspect=episode.stalled is None if episode is not None else bool(asked.silent),
            stalled=episode.stalled if episode else None,
            oldest_unmoved_seconds=judged.oldest_ns / SECOND,
            requests_in_flight=judged.requests,
            threads_in_d=judged.threads_in_d,
            stalls=dict(counts.stalls),
            stall_seconds=dict(counts.seconds),
            captures=dict(self.results[vm.target]),
            last_bundle_at=self.bundles.get(vm.target),
            host_unmoved_seconds=sampled.host_unmoved_seconds,
            silent_disks=asked.silent,
            monitor_asks=dict(asked.outcomes),
        )


def _is_long(sampled: SampledVm, config: WatchConfig) -> bool:
    """Return whether a stall is old enough to be told from a moment's."""
    episode = sampled.stages.episode
    return episode is not None and episode.seconds >= config.stages.light_seconds


def _hung_tasks() -> int | None:
    try:
        return int(read_kernel(HUNG_TASKS, 64))
    except (OSError, ValueError):
        return None
