"""Asks one question after another, each exchange written down before the next is begun."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from autopsy.bundle import layout
from autopsy.bundle.records import QmpExchange
from autopsy.capture.qmp import commands, stability
from autopsy.capture.qmp.client import Answered, CommandError, NoAnswer, NotAsked, Reply, Transport
from autopsy.capture.step import Scene
from autopsy.files import private
from autopsy.target.target import ends_within

QUESTION_SECONDS = 2.0
END_SECONDS = 1.0  # from the connection's end to the process's: it may have much memory to give back
ENDED = "the VM has ended"
LEAST_SECONDS = 0.1  # a question that cannot be given even this is not asked

OutcomeWord = Literal["answered", "error", "no answer", "skipped", "greeted", "busy", "silent", "refused", "absent"]


def write_down(scene: Scene, exchange: QmpExchange) -> None:
    """Append one exchange to the step's qmp.jsonl; it is whole in the kernel when this returns: no kill can take it."""
    private.append(scene.folder / layout.QMP, msgspec.json.encode(exchange) + b"\n")


class Interview:
    """A conversation with one monitor. After the first question that is not answered, none is asked any more.

    Whatever the way to the monitor, every question passes here: one that is unstable is not asked, unless
    `unstable_too`, and one that has harmed a QEMU is asked of none that it could harm.
    """

    def __init__(self, scene: Scene, transport: Transport, *, unstable_too: bool = False) -> None:
        self._scene = scene
        self._transport = transport
        self._unstable_too = unstable_too
        self.qemu = qemu_of(earlier(scene, layout.QUERY_STATUS))
        self.ended: NoAnswer | NotAsked | None = None
        self.ended_at = ""
        self.ended_after = 0.0
        self.answered = 0
        self.late = False

    async def ask(
        self,
        question: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        why_not: str = "",
        keep: Callable[[Any], Any] = lambda answer: answer,
    ) -> Any:  # noqa: ANN401 - JSON
        """Return the answer, None where there is none. With `why_not` it is written down, and not asked.

        `keep` makes of an answer what is written down and returned.
        """
        arguments = arguments or {}
        why_not = why_not or stability.why_not(question, self.qemu, unstable_too=self._unstable_too)
        seconds = min(QUESTION_SECONDS, self._scene.deadline.left())
        if self.ended is not None:
            why_not = f"{self.ended_at} was not answered"
        elif seconds < LEAST_SECONDS:
            self.late = True
            why_not = why_not or "the step's time was up"
        begun = time.monotonic_ns()
        if why_not:
            self._write(question, arguments, "skipped", begun, 0.0, why=why_not)
            return None
        reply = self._unless_ended(await self._transport.ask(question, arguments, seconds))
        if isinstance(reply, Answered):
            reply = Answered(keep(reply.value))
        return self._note(question, arguments, reply, begun, seconds)

    def _unless_ended(self, reply: Reply) -> Reply:
        """Ask the pidfd, not whoever lies between, what a reply that is no answer means."""
        match reply:
            case Answered():
                return reply
            case CommandError() | NoAnswer(""):
                return NoAnswer(ENDED) if ends_within(self._scene.target, 0) else reply
            case NoAnswer() | NotAsked():
                return NoAnswer(ENDED) if ends_within(self._scene.target, END_SECONDS) else reply

    def _note(self, question: str, arguments: Mapping[str, Any], reply: Reply, begun: int, seconds: float) -> Any:  # noqa: ANN401 - JSON
        match reply:
            case Answered(value):
                self.answered += 1
                self._write(question, arguments, "answered", begun, seconds, answer=value)
                return value
            case CommandError(value):
                self._write(question, arguments, "error", begun, seconds, answer=value)
            case NoAnswer(why):
                self._end(question, reply, seconds)
                self._write(question, arguments, "no answer", begun, seconds, why=why)
            case NotAsked(why):
                self._end(question, reply, seconds)
                self._write(question, arguments, "skipped", begun, seconds, why=why)
        return None

    def _end(self, question: str, reply: NoAnswer | NotAsked, seconds: float) -> None:
        self.ended, self.ended_at, self.ended_after = reply, question, seconds

    def _write(
        self,
        question: str,
        arguments: Mapping[str, Any],
        outcome: OutcomeWord,
        begun: int,
        seconds: float,
        *,
        answer: Any = None,  # noqa: ANN401 - JSON
        why: str = "",
    ) -> None:
        write_down(
            self._scene,
            QmpExchange(
                question=question,
                arguments=dict(arguments),
                outcome=outcome,
                asked_ns=begun,
                ms=(time.monotonic_ns() - begun) / 1e6,
                deadline_ms=seconds * 1e3,
                monitor=self._transport.monitor,
                answer=answer,
                why=why,
            ),
        )


def earlier(scene: Scene, step: str) -> tuple[QmpExchange, ...]:
    """Return what an earlier step asked; a last line that is cut short is left out."""
    exchanges = []
    for line in scene.earlier(step, layout.QMP).splitlines():
        try:
            exchanges.append(msgspec.json.decode(line, type=QmpExchange))
        except (msgspec.MsgspecError, UnicodeDecodeError):  # the step was killed in the middle of the line
            break
    return tuple(exchanges)


def answer_to(exchanges: tuple[QmpExchange, ...], question: str) -> Any:  # noqa: ANN401 - JSON
    """Return the first answer to a question, None where there is none."""
    return next(
        (exchange.answer for exchange in exchanges if exchange.question == question and exchange.outcome == "answered"),
        None,
    )


def unanswered(exchanges: tuple[QmpExchange, ...]) -> str:
    """Return the first question that got no answer, empty when each got one.

    A monitor that did not greet says nothing where another one did: that one was asked.
    """
    greeted = any(exchange.outcome == "greeted" for exchange in exchanges)
    silent = {"no answer"} if greeted else {"no answer", "silent"}
    return next((exchange.question for exchange in exchanges if exchange.outcome in silent), "")


def qemu_of(exchanges: tuple[QmpExchange, ...]) -> commands.Qemu:
    """Return what greeting and first answers tell of this QEMU."""
    greeting = next((exchange.answer for exchange in exchanges if exchange.outcome == "greeted"), None)
    version = commands.version(answer_to(exchanges, commands.VERSION) or greeting)
    return commands.Qemu(
        version=version,
        commands=commands.commands(answer_to(exchanges, commands.COMMANDS)),
        without_iothreads=answer_to(exchanges, commands.IOTHREADS) == [],
        marked=frozenset((answer_to(exchanges, commands.SCHEMA) or {}).get("unstable", ())),
    )
