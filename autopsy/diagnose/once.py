"""Answers a question about a VM's facts once: dozens of signatures put the same ones, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from autopsy.facts.model.facts import Facts

P = ParamSpec("P")
Answer = TypeVar("Answer")


def once(question: Callable[Concatenate[Facts, P], Answer]) -> Callable[Concatenate[Facts, P], Answer]:
    """Remember the answers about the facts that were asked about last: facts do not change, and are told by identity.

    What else is asked with must be hashable. Threads that diagnose side by side do not take one another's answers.
    """
    remembered: tuple[Facts | None, dict[Hashable, Answer]] = (None, {})

    @wraps(question)
    def asked(facts: Facts, /, *more: P.args, **named: P.kwargs) -> Answer:
        nonlocal remembered
        about, answers = remembered
        if about is not facts:
            answers = {}
            remembered = (facts, answers)
        key = (more, *named.items()) if named else more
        if key in answers:
            return answers[key]
        answer = answers[key] = question(facts, *more, **named)
        return answer

    return asked
