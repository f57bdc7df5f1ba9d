"""Knows the answers of QEMU's monitor among JSON, and the question of each by what it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Any

import msgspec

from autopsy.bundle import layout
from autopsy.bundle.records import QmpExchange
from autopsy.dataclass import dataclass

MOST_ANSWERS = 200
STEPS = {
    "query-status": layout.QUERY_STATUS,
    "query-block": layout.QUERY_BLOCK,
    "query-blockstats": layout.QUERY_BLOCK,
    "query-named-block-nodes": layout.QUERY_BLOCK,
    "query-block-jobs": layout.QUERY_BLOCK,
    "query-jobs": layout.QUERY_BLOCK,
    "query-iothreads": layout.QUERY_BLOCK,
    "query-migrate": layout.QUERY_STATUS,
    "query-cpus-fast": layout.QUERY_STATUS,
}


@dataclass(slots=True)
class QmpText:
    """Answers met so far; `asked` is the question that stood before one."""

    exchanges: list[QmpExchange] = field(default_factory=list)
    asked: str = ""

    def take(self, value: Any) -> bool:  # noqa: ANN401 - JSON, checked by whoever reads it
        """Take a value; return whether it is a question or an answer."""
        if isinstance(value, dict) and isinstance(value.get("execute"), str):
            self.asked = value["execute"][:100]
            return True
        answer = value.get("return") if isinstance(value, dict) and "return" in value else value
        question = self.asked if self.asked in STEPS else _question(answer)
        self.asked = ""
        if question not in STEPS or len(self.exchanges) >= MOST_ANSWERS:
            return False
        self._add(question, answer)
        return True

    def _add(self, question: str, answer: Any) -> None:  # noqa: ANN401 - QEMU's JSON, checked by whoever reads it
        self.exchanges.append(
            QmpExchange(question=question, outcome="answered", asked_ns=0, ms=0.0, deadline_ms=0.0, answer=answer)
        )


def _question(answer: Any) -> str:  # noqa: ANN401 - as above
    """Tell by its shape which question an answer is to, empty where two could be meant."""
    if isinstance(answer, dict):
        return "query-status" if {"status", "running"} <= set(answer) else ""
    first = answer[0] if isinstance(answer, list) and answer and isinstance(answer[0], dict) else {}
    keys = set(first)
    for question, wanted in (
        ("query-blockstats", {"stats"}),
        ("query-block", {"device", "locked", "removable"}),
        ("query-named-block-nodes", {"node-name", "drv", "ro"}),
        ("query-block-jobs", {"device", "len", "offset", "type"}),
        ("query-jobs", {"id", "type", "status", "current-progress"}),
        ("query-iothreads", {"id", "thread-id", "poll-max-ns"}),
        ("query-cpus-fast", {"cpu-index", "thread-id"}),
    ):
        if wanted <= keys:
            return question
    return ""


def files(exchanges: Sequence[QmpExchange]) -> dict[str, bytes]:
    """Return the answers as the steps of a capture keep them; the first answer to each question counts."""
    by_step: dict[str, list[QmpExchange]] = {}
    seen = set()
    for exchange in exchanges:
        if exchange.question not in seen:
            seen.add(exchange.question)
            by_step.setdefault(STEPS[exchange.question], []).append(exchange)
    return {
        layout.evidence(step, layout.QMP): b"".join(msgspec.json.encode(exchange) + b"\n" for exchange in exchanges)
        for step, exchanges in by_step.items()
    }
