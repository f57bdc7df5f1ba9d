"""What a watch had seen of the VM before its capture: what stood still, and since when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from autopsy.bundle.ring import RingSample
from autopsy.dataclass import dataclass
from autopsy.diagnose.diagnosis import Claim
from autopsy.diagnose.queries.silence import SECOND, seconds
from autopsy.diagnose.queries.wording import sentence
from autopsy.diagnose.signature import claim
from autopsy.facts.cite import Cite, Unknown
from autopsy.facts.model.facts import Facts, Times

# In the words of a `watch`: the kinds of its StallKind.
STOOD = {
    "disk": "no block request moved",
    "request": "a block request did not move",
    "mainloop": "the main loop did not come round",
    "vcpus": "the vCPUs did not run",
    "host": "no block request moved, and other VMs of the host stood still with it",
}
FRESH_NS = 10 * SECOND  # a watch samples every other second: an older sample is of one that has ended
OVER = "by this capture it was over"
LONG_MS = 3000  # what a watch begins to suspect
STOOD_MS = 8000  # what no queue that moves is met at


@dataclass(frozen=True, slots=True)
class SeenStall:
    """What stood still and since when, on CLOCK_MONOTONIC; it moved at `moving_ns`, absent where that was not seen."""

    what: str
    began_ns: int
    moving_ns: int | None
    cite: Cite


def seen_stall(facts: Facts) -> SeenStall | None:
    """Return the stall that a watch saw begin and last until this capture; None where none did."""
    if isinstance(facts.before, Unknown):
        return None
    header, last = facts.before.value.header, _last(facts)
    began = header.began_monotonic_ns
    if last is None or began is None or header.kind not in STOOD or not began <= last.monotonic_ns:
        return None
    moving = header.seen_moving_ns if header.seen_moving_ns is not None and header.seen_moving_ns <= began else None
    return SeenStall(STOOD[header.kind], began, moving, Cite(facts.before.cite.file, 1))


def since_seen(facts: Facts, *, well: bool) -> str:
    """Say what a watch saw of the stall's beginning, or of one that is over where all is well; empty where of none."""
    stall = seen_stall(facts)
    if stall is None:
        return _over(facts) if well else ""
    ago = seconds(facts.times.began_ns - stall.began_ns)
    after = f"; it had moved at {_clock(facts.times, stall.moving_ns)}" if stall.moving_ns is not None else ""
    over = f"; {OVER}" if well else ""
    since = _clock(facts.times, stall.began_ns)
    return f"a watch saw it: {stall.what} since {since}, {ago} before this capture{after}{over}"


def stood_before(facts: Facts) -> Claim | None:
    """Return what a watch saw stand still for longer than anything does that is well; None where it saw no such thing.

    That it moves now does not say why it stood, or that it will not again.
    """
    if isinstance(facts.before, Unknown) or _last(facts) is None:
        return None
    stall = seen_stall(facts)
    for_ms = (facts.times.began_ns - stall.began_ns) // 1_000_000 if stall is not None else 0
    longest = max((sample.oldest_unmoved_ms for sample in facts.before.value.samples), default=0)
    if max(for_ms, longest) < STOOD_MS:
        return None
    return claim(f"{sentence(since_seen(facts, well=True))}.", stall.cite if stall else Cite(facts.before.cite.file, 1))


def _over(facts: Facts) -> str:
    """Say of a VM that is well that it was not, within the minute before."""
    if isinstance(facts.before, Unknown) or _last(facts) is None:
        return ""
    longest = max((sample.oldest_unmoved_ms for sample in facts.before.value.samples), default=0)
    if longest < LONG_MS:
        return ""
    return f"a watch saw a request stand still for {longest / 1000:.1f} s within the minute before; {OVER}"


def _last(facts: Facts) -> RingSample | None:
    """Return the newest sample, if it was taken just before the capture."""
    if isinstance(facts.before, Unknown) or not facts.before.value.samples:
        return None
    last = facts.before.value.samples[-1]
    return last if 0 <= facts.times.began_ns + SECOND - last.monotonic_ns < FRESH_NS + SECOND else None


def _clock(times: Times, ns: int) -> str:
    try:
        moment = datetime.fromisoformat(times.utc) + timedelta(microseconds=(ns - times.began_ns) / 1000)
        return f"{moment.astimezone(UTC):%H:%M:%S} UTC"
    except (ValueError, OverflowError):  # a bundle may claim any number
        return "a moment that cannot be told"
