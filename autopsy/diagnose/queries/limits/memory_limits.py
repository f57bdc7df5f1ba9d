"""Tells which limits on memory the VM's control groups have reached."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from autopsy.diagnose.diagnosis import Claim
from autopsy.diagnose.signature import claim
from autopsy.facts.cite import Known
from autopsy.facts.model.facts import Facts
from autopsy.facts.model.host import MemoryLimit

MEMORY = "memory-reclaim"  # the family of threads that wait for memory


def reached(facts: Facts) -> tuple[MemoryLimit, ...]:
    """Return them, the VM's own group first."""
    limits = facts.host.memory_limits.value if isinstance(facts.host.memory_limits, Known) else ()
    return tuple(sorted(limits, key=lambda limit: -limit.group.count("/")))


def in_words(limit: MemoryLimit) -> str:
    """Return which group is at which limit, after what waits for it."""
    return (
        f"control group {limit.group}, which is at its limit of {_size(limit.limit)} ({limit.file.rpartition('/')[2]})"
    )


def about(limits: Iterable[MemoryLimit]) -> Iterator[Claim]:
    """Say of each how much its group uses."""
    for limit in limits:
        words = f"Control group {limit.group} uses {_size(limit.used)}"
        yield claim(f"{words} of the {_size(limit.limit)} that {limit.file} lets it.", limit.cite)


def _size(count: int) -> str:
    return f"{count / (1 << 20):.0f} MiB" if count >= 10 << 20 else f"{count / (1 << 10):.0f} KiB"
