"""Says whether a stall may be captured now; limits are data, the time is given, each refusal counts once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated

import msgspec

from autopsy.dataclass import dataclass
from autopsy.watch.model import StallKind, Suppression

BEGIN_SECONDS = 1.0  # two looks at one stall agree so far on when it began
LONGEST_SECONDS = 600.0  # a capture that has not been said to have ended by then is not waited for

# What a configuration file may say.
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86400)]
Count = Annotated[int, msgspec.Meta(ge=0, le=1000)]


class CaptureLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much may be captured; the configuration file says what each means."""

    enabled: bool = True
    per_episode: Count = 2
    again_after_seconds: Seconds = 60.0
    per_vm: Count = 2
    per_host: Count = 6
    light_per_vm: Count = 6
    window_seconds: Seconds = 3600.0
    storm_vms: Annotated[int, msgspec.Meta(ge=2, le=1000)] = 3
    storm_seconds: Seconds = 10.0
    high_water_seconds: Seconds = 1200.0
    worse_by: Annotated[float, msgspec.Meta(ge=1, le=1000)] = 2.0


USUAL = CaptureLimits()


@dataclass(frozen=True, slots=True)
class Go:
    """It may be captured; whoever was told so captures it, and says when that has ended."""


@dataclass(frozen=True, slots=True)
class StartedCapture:
    """One that was let through. `stalled_seconds` is how long the stall had lasted by then."""

    vm: str
    kind: StallKind
    at: float
    stalled_seconds: float


@dataclass(slots=True)
class Episode:
    """One stall of a VM from its beginning on, with what was done about it; of whatever kind, as it may change."""

    began: float
    seen: float
    captures: int = 0
    last_capture: float = 0.0
    refused: set[Suppression] = field(default_factory=set)


class CaptureGate:
    """Remembers the captures of the last hour, and lets the next one through or not.

    Times are seconds of one clock that never goes back. A VM is a word that means it alone.
    """

    def __init__(self, limits: CaptureLimits = USUAL) -> None:
        self.limits = limits
        self._started: list[StartedCapture] = []
        self._light: list[tuple[str, float]] = []
        self._episodes: dict[str, Episode] = {}
        self._running: tuple[str, float] | None = None
        self._suppressed: Counter[Suppression] = Counter()

    @property
    def suppressed(self) -> Mapping[Suppression, int]:
        """Return how many stalls each limit has kept from a capture."""
        return dict(self._suppressed)

    def remember(self, vm: str, at: float, kind: StallKind = StallKind.DISK) -> None:
        """Count a capture that an earlier watch has made: its limits do not begin anew with ours."""
        self._started.append(StartedCapture(vm, kind, at, 0.0))

    def may_capture(
        self, vm: str, kind: StallKind, at: float, stalled_seconds: float, *, room: bool = True
    ) -> Go | Suppression:
        """Return whether the VM may be captured in full now; `Go` counts as begun.

        `room` says whether the store may grow.
        """
        self._forget(at)
        episode = self._episode(vm, at, stalled_seconds)
        why = self._against(vm, kind, at, stalled_seconds, episode, room=room)
        if why is not None:
            return self._refused(episode, why)
        self._started.append(StartedCapture(vm, kind, at, stalled_seconds))
        self._running = (vm, at)
        episode.captures += 1
        episode.last_capture = at
        return Go()

    def may_keep_light(self, vm: str, at: float, stalled_seconds: float, *, room: bool = True) -> Go | Suppression:
        """Return whether a light bundle of the VM may be kept now; `Go` counts as kept."""
        self._forget(at)
        episode = self._episode(vm, at, stalled_seconds)
        if not self.limits.enabled:
            return self._refused(episode, Suppression.DISABLED)
        if not room:
            return self._refused(episode, Suppression.STORE)
        if (
            sum(other == vm and kept > at - self.limits.window_seconds for other, kept in self._light)
            >= self.limits.light_per_vm
        ):
            return self._refused(episode, Suppression.VM)
        self._light.append((vm, at))
        return Go()

    def ended(self, vm: str) -> None:
        """Say that the capture of a VM has ended, well or not: the next one may begin."""
        if self._running is not None and self._running[0] == vm:
            self._running = None

    def _refused(self, episode: Episode, why: Suppression) -> Suppression:
        if why not in episode.refused:  # it is asked for again in each round
            episode.refused.add(why)
            self._suppressed[why] += 1
        return why

    def _against(
        self, vm: str, kind: StallKind, at: float, stalled_seconds: float, episode: Episode, *, room: bool
    ) -> Suppression | None:
        limits = self.limits
        before = episode.captures
        running = self._running is not None and at - self._running[1] < LONGEST_SECONDS
        of_late = [capture.vm for capture in self._started if capture.at > at - limits.window_seconds]
        reasons = (
            (Suppression.DISABLED, not limits.enabled),
            (Suppression.STORE, not room),
            (Suppression.EPISODE, before >= limits.per_episode),
            (Suppression.EPISODE, before > 0 and stalled_seconds < limits.again_after_seconds),
            (Suppression.STORM, self._is_storm(episode)),
            (Suppression.RUNNING, running),
            (Suppression.NOT_WORSE, not before and stalled_seconds < limits.worse_by * self._high_water(vm, kind, at)),
            (Suppression.VM, of_late.count(vm) >= limits.per_vm),
            (Suppression.HOST, len(of_late) >= limits.per_host),
        )
        return next((why for why, holds in reasons if holds), None)

    def _is_storm(self, episode: Episode) -> bool:
        """Return whether so many VMs stall at once that it is the host's matter, and one of them was captured."""
        together = [
            other for other in self._episodes.values() if abs(other.began - episode.began) <= self.limits.storm_seconds
        ]
        return len(together) >= self.limits.storm_vms and any(other.captures for other in together)

    def _high_water(self, vm: str, kind: StallKind, at: float) -> float:
        """Return for how long the worst stall had lasted that was captured of late; 0 where there was none."""
        of_late = at - self.limits.high_water_seconds
        marks = (mark for mark in self._started if (mark.vm, mark.kind) == (vm, kind) and mark.at > of_late)
        return max((mark.stalled_seconds for mark in marks), default=0.0)

    def _episode(self, vm: str, at: float, stalled_seconds: float) -> Episode:
        """Return the stall that goes on, or a new one where this began after the last look at that."""
        began = at - stalled_seconds
        known = self._episodes.get(vm)
        if known is None or began > max(known.seen, known.began + BEGIN_SECONDS):
            known = self._episodes[vm] = Episode(began, at)
        known.seen = max(known.seen, at)
        return known

    def _forget(self, at: float) -> None:
        since = at - max(self.limits.window_seconds, self.limits.high_water_seconds)
        self._started = [mark for mark in self._started if mark.at > since]
        self._light = [light for light in self._light if light[1] > since]
        self._episodes = {vm: episode for vm, episode in self._episodes.items() if episode.seen > since}
