"""What a kill makes unknowable, what our own capture did to the VM, and what came back while it was looked at."""

from __future__ import annotations

from collections.abc import Iterable

from autopsy.bundle import layout
from autopsy.diagnose.diagnosis import Unproven
from autopsy.facts.cite import Known
from autopsy.facts.model.facts import Facts

# What is in the frozen core can be asked of it later, with better symbols; the rest dies with the process.
IN_THE_CORE = (layout.HEAP, layout.COROUTINES, layout.LOCKS, layout.MAIN_LOOP, layout.THREADS)


def lost_by_kill(facts: Facts, undecided: Iterable[Unproven]) -> tuple[str, ...]:
    """Return the questions that nobody can answer any more once the process is gone; none where it is gone already."""
    if isinstance(facts.vm.end, Known):
        return ()
    lost = []
    for unproven in undecided:
        later = any(file in unproven.missing for file in IN_THE_CORE) and "freeze" not in unproven.missing
        if not later:
            lost.append(f"Whether {unproven.text}: {unproven.missing}")
    skipped = [query for query in facts.monitor.asked if query.exchange.outcome == "skipped"]
    if skipped:
        questions = ", ".join(dict.fromkeys(query.exchange.question for query in skipped))
        lost.append(f"What QEMU itself would have answered to {questions}")
    return tuple(dict.fromkeys(lost))[:12]
