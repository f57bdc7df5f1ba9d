"""What QEMU answered to which question, and where it fell silent."""

from __future__ import annotations

from typing import Any

from autopsy.bundle import layout
from autopsy.bundle.records import QmpExchange
from autopsy.facts import vm_end
from autopsy.facts.cite import Cite, Fact, Known, Unknown
from autopsy.facts.evidence import Evidence, lines, missing
from autopsy.facts.model.facts import Asked, MigrationPace, MonitorFact, RunState
from autopsy.facts.untrusted import mapping, number

GREETING = "(greeting)"
SHORTEST_MS = 500.0  # of what has got no answer
CAPABILITIES = "qmp_capabilities"
STEPS = (layout.QUERY_STATUS, layout.QUERY_BLOCK, layout.THROTTLE_GROUPS, layout.SECOND_EXPOSURE, layout.UNSTABLE)


def gather_conversation(evidence: Evidence) -> MonitorFact:
    """Return the conversation in the order in which it was held."""
    asked: list[Asked] = []
    for step in STEPS:
        path = layout.evidence(step, layout.QMP)
        for line, exchange in lines(evidence, step, layout.QMP, QmpExchange):
            cite = Cite(path, line, f"{exchange.question}: {exchange.outcome}")
            asked.append(Asked(exchange=exchange, again=step == layout.SECOND_EXPOSURE, cite=cite))
    absent = missing(evidence, layout.QUERY_STATUS, layout.QMP)
    greetings = [
        one for one in asked if one.exchange.question == GREETING and not one.again and not _is_cut_short(one.exchange)
    ]
    # What a question did that QEMU promises nothing about says nothing of how the VM was before.
    asked_well = [one for one in asked if not one.cite.file.startswith(layout.evidence(layout.UNSTABLE, ""))]
    # Nor does what a QEMU that ended did not answer say anything of its main loop.
    asked_well = [one for one in asked_well if not vm_end.fell_silent(evidence, one)]
    # What was cut short says as little, as on a host so busy that a question gets a twentieth of a second.
    asked_well = [one for one in asked_well if not _is_cut_short(one.exchange)]
    silent = [one for one in asked_well if one.exchange.outcome == "no answer"]
    silent.sort(key=lambda one: one.exchange.asked_ns)
    return MonitorFact(
        greeting=Known(greetings[0].exchange.outcome, greetings[0].cite) if greetings else absent,
        holder=next((greeting.exchange.peer for greeting in greetings if greeting.exchange.peer), ""),
        asked=tuple(asked),
        died_at=Known(silent[0], silent[0].cite) if silent else Unknown(absent.evidence, "no question went unanswered"),
        alive=_alive([one for one in asked_well if not one.again], absent),
        alive_again=_alive(
            [one for one in asked_well if one.again],
            missing(evidence, layout.SECOND_EXPOSURE, layout.QMP),
        ),
        not_asked=_not_asked(evidence, asked),
    )


def _is_cut_short(exchange: QmpExchange) -> bool:
    """Tell whether QEMU was given less time for an answer than a main loop that comes round may need."""
    return exchange.outcome in {"no answer", "silent"} and exchange.ms < SHORTEST_MS


def _not_asked(evidence: Evidence, asked: list[Asked]) -> str:
    """Say why nobody could be asked: the step says so itself, and a monitor that keeps silent is another thing."""
    step = next((step for step in evidence.manifest.steps if step.name == layout.QUERY_STATUS), None)
    met = {one.exchange.outcome for one in asked if one.exchange.question == GREETING}
    put = any(one.exchange.question != GREETING for one in asked)
    if step is None or step.outcome not in {"Skipped", "Failed"} or put or met & {"greeted", "silent"}:
        return ""
    return step.why


def _alive(asked: list[Asked], absent: Unknown) -> Fact[bool]:
    """Tell whether the main loop answered: False only if a question was put and never answered."""
    questions = [one for one in asked if one.exchange.question != GREETING]
    for question in questions:
        if question.exchange.outcome == "no answer":
            return Known(value=False, cite=question.cite)
    for question in questions:
        if question.exchange.outcome in {"answered", "error"}:
            return Known(value=True, cite=question.cite)
    return absent if not asked else Unknown(absent.evidence, "no question was put to the monitor")


def answers(monitor: MonitorFact, question: str, *, again: bool) -> tuple[Asked, ...]:
    """Return every answered exchange of one question in one snapshot."""
    return tuple(
        asked
        for asked in monitor.asked
        if asked.exchange.question == question and asked.again is again and asked.answer is not None
    )


def answer(monitor: MonitorFact, question: str, *, again: bool = False) -> Fact[Any]:
    """Return the first answer to a question, or why there is none."""
    for asked in answers(monitor, question, again=again):
        return Known(asked.answer, asked.cite)
    for asked in monitor.asked:
        if asked.exchange.question == question and asked.again is again:
            why = f": {asked.exchange.why}" if asked.exchange.why else ""
            return Unknown(asked.cite.file, f"{question}: {asked.exchange.outcome}{why}")
    where = layout.SECOND_EXPOSURE if again else layout.QUERY_STATUS
    return Unknown(layout.evidence(where, layout.QMP), f"{question} was not asked")


def run_state(monitor: MonitorFact, *, again: bool = False) -> Fact[RunState]:
    """Return what query-status said."""
    status = answer(monitor, "query-status", again=again)
    if isinstance(status, Unknown):
        return status
    value = status.value
    if not isinstance(value, dict) or not isinstance(value.get("status"), str):
        return Unknown(status.cite.file, "query-status gave an answer that is none")
    return Known(
        RunState(value["status"], running=value.get("running") is True),
        Cite(status.cite.file, status.cite.line, f"status {value['status']}"),
    )


def migration(monitor: MonitorFact) -> Fact[str]:
    """Return the migration's status, `none` where there never was one."""
    known = answer(monitor, "query-migrate")
    if isinstance(known, Unknown):
        return known
    status = known.value.get("status", "none") if isinstance(known.value, dict) else "none"
    return Known(str(status), known.cite)


def migration_pace(monitor: MonitorFact) -> Fact[MigrationPace]:
    """Return what a migration sent between two answers; only one that was active at both has a pace."""
    looks = []
    for again in (False, True):
        status = next(iter(answers(monitor, "query-migrate", again=again)), None)
        if status is None:
            absent = answer(monitor, "query-migrate", again=again)
            return absent if isinstance(absent, Unknown) else Unknown(absent.cite.file, "no migration")
        if mapping(status.answer).get("status") != "active":
            return Unknown(status.cite.file, "no migration was active at both looks")
        looks.append(status)
    ram, ram_again = (mapping(mapping(look.answer).get("ram")) for look in looks)
    seconds = (looks[1].exchange.asked_ns - looks[0].exchange.asked_ns) / 1e9
    sent = number(ram_again.get("transferred")) - number(ram.get("transferred"))
    if seconds <= 0 or sent < 0:
        return Unknown(looks[1].cite.file, "query-migrate counted backwards")
    return Known(MigrationPace(sent, seconds, number(ram_again.get("remaining"))), looks[1].cite)
