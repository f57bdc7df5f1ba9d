"""What is done about a stall, the longer it lasts: pure, told of each sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import field
from enum import Enum

from autopsy.dataclass import dataclass
from autopsy.watch.config import Stages
from autopsy.watch.judge import JudgedSample
from autopsy.watch.model import StallKind, WatchState

ROUND_SECONDS = 1.0  # to the next sample of what is suspected: a stage is entered by then at the latest, not after
# A stall is told of in time also by a host that is busy, as hosts of VMs that stall are: a round comes late there.
BUSY_ROUND_SECONDS = 2.0
QUIET_SAMPLES = 2  # without a sign of it, and a stall is over
BLIND = frozenset({WatchState.STARVED, WatchState.STOPPED, WatchState.UNREADABLE})  # who says nothing of a stall


class Wish(Enum):
    """What a stall calls for."""

    LIGHT = "light"
    CAPTURE = "capture"


@dataclass(slots=True)
class StallEpisode:
    """One stall from its first suspicion on. `at` is CLOCK_MONOTONIC in seconds, when it began.

    It has lasted `seconds` as far as was seen, and no more than `most`: by that its stages come, so that none is late
    by the time between two samples.
    """

    kind: StallKind
    at: float
    seconds: float = 0.0
    most: float = 0.0
    light: bool = False
    stalled: StallKind | None = None
    accounted: float = 0.0
    quiet: int = 0


@dataclass(slots=True)
class VmStages:
    """Where one VM stands between well and stalled."""

    stages: Stages = field(default_factory=Stages)
    episode: StallEpisode | None = None

    def follow(self, judged: JudgedSample, at: float) -> StallEpisode | None:
        """Take one sample; return the stall that it ends, if it ends one that was called so."""
        stands = judged.stands
        if stands is None or stands.age_ns < self.stages.suspect_seconds * 1e9:
            if self.episode is None or judged.state in BLIND:
                return None
            self.episode.quiet += 1
            if self.episode.quiet < QUIET_SAMPLES:
                return None
            ended, self.episode = self.episode, None
            return ended if ended.stalled else None
        seconds = stands.age_ns / 1e9
        if self.episode is None:
            self.episode = StallEpisode(stands.kind, at - seconds)
        self.episode.quiet = 0
        self.episode.kind = stands.kind
        self.episode.seconds = max(self.episode.seconds, seconds)
        self.episode.most = max(self.episode.most, stands.most_ns / 1e9)
        return None

    def is_called_stalled(self) -> bool:
        """Return whether the stall has just become one that is called so."""
        episode = self.episode
        if (
            episode is None
            or episode.stalled
            or not _has_come(episode.most, self.stages.stalled_seconds, BUSY_ROUND_SECONDS)
        ):
            return False
        episode.stalled = episode.kind
        return True

    def wish(self) -> Wish | None:
        """Return what the stall calls for now; a capture is called for until it is no more let through."""
        episode = self.episode
        if episode is None or episode.quiet:
            return None
        if _has_come(episode.most, self.stages.capture_seconds):
            return Wish.CAPTURE
        if _has_come(episode.most, self.stages.light_seconds) and not episode.light:
            episode.light = True
            return Wish.LIGHT
        return None

    def newly_stalled_seconds(self) -> float:
        """Return the seconds of the stall that were not told yet; those before it was called so are told then."""
        if self.episode is None or not self.episode.stalled:
            return 0.0
        more = max(0.0, self.episode.seconds - self.episode.accounted)
        self.episode.accounted = self.episode.seconds
        return more


def _has_come(seconds: float, stage: float, before_next: float = ROUND_SECONDS) -> bool:
    """Return whether a stage is reached before the next sample."""
    return seconds + before_next > stage


def of_the_host(episodes: Iterable[StallEpisode], vms: int, seconds: float) -> bool:
    """Return whether so many VMs stall within seconds of each other that it is the host's matter."""
    begins = sorted(episode.at for episode in episodes)
    return any(last - first <= seconds for first, last in zip(begins, begins[vms - 1 :], strict=False))


@dataclass(slots=True)
class VmCounts:
    """What was counted of one VM since the watch began, whatever process it was."""

    stalls: Counter[StallKind] = field(default_factory=Counter)
    seconds: dict[StallKind, float] = field(default_factory=dict)

    def add(self, kind: StallKind, seconds: float) -> None:
        """Count seconds of a stall."""
        if seconds:
            self.seconds[kind] = self.seconds.get(kind, 0.0) + seconds
