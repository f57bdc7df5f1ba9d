"""Answers a question about a VM's facts once: dozens of signatures put the same ones, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from autopsy.facts.model.facts import Facts

P = ParamSpec("P")
Answer = TypeVar("Answer")


def once(question: Callable[Concatenate[Facts, P], Answer]) -> Callable[Concatenate[Facts, P], Answer]:
    """Keep the answers with the facts that they are about: facts do not change, and let go of them when they go.

    What else is asked with must be hashable. VMs that are diagnosed side by side do not take one another's answers.
    """

    @wraps(question)
    def asked(facts: Facts, /, *more: P.args, **named: P.kwargs) -> Answer:
        answers = facts.answers
        key = (question, more, *named.items()) if named else (question, more) if more else question
        try:
            known: Answer = answers[key]
        except KeyError:
            known = answers[key] = question(facts, *more, **named)
        return known

    return asked
