"""Tells what the capture itself left in the evidence, and what was in the way of reading it."""

from __future__ import annotations

from autopsy.diagnose.diagnosis import Claim
from autopsy.diagnose.queries.threads import looks, threads
from autopsy.diagnose.queries.wording import count
from autopsy.diagnose.signature import claim
from autopsy.facts.cite import Known, Unknown
from autopsy.facts.model.facts import Facts, MonitorFact


def footprint(facts: Facts) -> tuple[str, ...]:
    """Return what this capture did to the VM, in sentences."""
    sentences = []
    if facts.times.stopped_ns:
        sentences.append(f"The VM stood still for {facts.times.stopped_ns / 1e6:.2f} ms in all while it was frozen.")
    asked = [query for query in facts.monitor.asked if query.exchange.outcome in {"answered", "error", "no answer"}]
    if asked:
        sentences.append(f"{count(len(asked), 'question was', 'questions were')} put to its monitor.")
    if any(
        "custom-monitor" in query.exchange.why for query in facts.monitor.asked if query.exchange.outcome == "greeted"
    ):
        sentences.append(
            "They went through libvirtd, which has marked the domain as tainted (custom-monitor) until it ends."
        )
    if isinstance(facts.monitor.died_at, Known):
        question = facts.monitor.died_at.value.exchange.question
        sentences.append(
            f"Our question {question} was never answered: it may still wait inside QEMU, and what the main thread does "
            "after it was asked is our own footprint."
        )
    return tuple(sentences)


SYMBOLS = {
    "symtab": "QEMU's symbol table names every function, but source lines and the heap (throttle groups, tracked "
    "requests, jobs, virtqueues) take its debug file",
    "dynsym": "Only QEMU's exported functions have names: static ones are told as an offset, and source lines and the "
    "heap (throttle groups, tracked requests, jobs, virtqueues) take its debug file",
    "none": "No function of QEMU has a name here: where its threads and parked requests wait can hardly be told "
    "without its debug file",
}


def symbols(facts: Facts) -> str:
    """Say what is known of QEMU's own names and what that costs; empty where nothing is missing."""
    if isinstance(facts.symbols, Unknown) or facts.symbols.value not in SYMBOLS:
        return ""
    return f"{SYMBOLS[facts.symbols.value]}: `autopsy examine BUNDLE --debug-file F`, or `--debuginfod URL`."


def side_effects(facts: Facts) -> tuple[Claim, ...]:
    """Tell of a VM that came back while it was looked at, and of what else our look changed."""
    claims = []
    monitor = facts.monitor
    if _came_back(monitor) and isinstance(monitor.alive, Known) and isinstance(monitor.alive_again, Known):
        claims.append(
            claim(
                "QEMU's monitor did not answer at first, and answered at the second snapshot: something set it free in "
                "between. A stop's EINTR or a question can kick a lost wake-up, so this is evidence for one.",
                monitor.alive.cite,
                monitor.alive_again.cite,
            )
        )
    for disk in facts.disks.value if isinstance(facts.disks, Known) else ():
        stats, later = disk.stats, disk.stats_again
        if isinstance(stats, Unknown) or isinstance(later, Unknown) or stats.value.idle_ns is None:
            continue
        if stats.value.idle_ns > 10_000_000_000 and later.value.completed > stats.value.completed:
            claims.append(
                claim(
                    f"Disk {disk.name} had completed nothing for {stats.value.idle_ns / 1e9:.0f} s, then "
                    f"{later.value.completed - stats.value.completed} requests during the capture.",
                    stats.cite,
                    later.cite,
                )
            )
    stopping = [look for thread in threads(facts) for look in looks(thread)[:1] if look.stop_pending]
    if stopping:
        claims.append(
            claim(
                "A SIGSTOP was already pending when this capture began: another tool left it, and the VM will stop "
                "when "
                "its storage answers. `kill -CONT` while it is pending clears it.",
                *(look.cite for look in stopping[:3]),
            )
        )
    return tuple(claims)


def _came_back(monitor: MonitorFact) -> bool:
    first, again = monitor.alive, monitor.alive_again
    return isinstance(first, Known) and isinstance(again, Known) and not first.value and again.value
