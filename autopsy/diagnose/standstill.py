"""Says of what a diagnosis names since when it stands still, and how its counters stood between the looks."""

from __future__ import annotations

from autopsy.diagnose.diagnosis import Claim, Where
from autopsy.diagnose.queries.requests import title
from autopsy.diagnose.queries.silence import about_silence, silence_of
from autopsy.diagnose.seen_before import since_seen
from autopsy.diagnose.signature import claim
from autopsy.facts import subjects
from autopsy.facts.cite import Known
from autopsy.facts.model.facts import Facts
from autopsy.facts.subjects import Subject

NOTHING_STUCK = frozenset({"none", "vm-state"})


def since(facts: Facts, where: Where, objects: tuple[Subject, ...]) -> str:
    """Say since when it is stuck: what a watch saw, and how long the disk silent the longest had completed nothing."""
    seen = "" if where == "vm-state" else since_seen(facts, well=where == "none")
    return "; ".join(filter(None, (seen, _silent(facts, where, objects))))


def _silent(facts: Facts, where: Where, objects: tuple[Subject, ...]) -> str:
    if where in NOTHING_STUCK or not isinstance(facts.disks, Known):
        return ""
    named = [disk for disk in facts.disks.value if subjects.disk(disk) in objects]
    longest = max(named, key=lambda disk: silence.idle_ns if (silence := silence_of(disk)) else -1, default=None)
    words = about_silence(longest) if longest else ""
    return f"disk {title(longest)}: {words}" if longest and words else ""


def standstill(facts: Facts, where: Where, objects: tuple[Subject, ...]) -> tuple[Claim, ...]:
    """Say of each disk that the diagnosis names how its counters stood between the two snapshots."""
    if where == "none" or not isinstance(facts.disks, Known):
        return ()
    claims = []
    for disk in (disk for disk in facts.disks.value if subjects.disk(disk) in objects):
        if not isinstance(disk.completed, Known) or not isinstance(disk.stats, Known):
            continue
        done = disk.completed.value
        words = (
            f"completed {done} requests"
            if done
            else f"completed none (its count stood at {disk.stats.value.completed})"
        )
        claims.append(
            claim(f"Between the two snapshots disk {disk.name} {words}.", disk.stats.cite, disk.completed.cite)
        )
    return tuple(claims[:8])
