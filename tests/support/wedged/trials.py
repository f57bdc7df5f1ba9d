"""Wedges, and what only looks like one, each with what a capture is to say of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import pytest

from support.builds import Build
from support.verdicts import Verdict
from support.wedged.wedges import Stuck


@dataclass(frozen=True, slots=True)
class Trial:
    """`signature` is the verdict's, `sure` the most that it may claim; `says` is in its headline."""

    name: str
    where: str
    signature: str
    set_up: Callable[[Build], AbstractContextManager[Stuck]]
    labels: tuple[str, ...]
    sure: tuple[str, ...] = ("proven", "likely", "possible")
    says: str = ""

    def assert_told(self, verdict: Verdict) -> None:
        """Fail where a verdict says another thing, or more than it may."""
        assert (verdict.where, verdict.signature) == (self.where, self.signature), verdict
        assert verdict.confidence in self.sure, verdict
        assert self.says in verdict.answer["verdict"]["headline"], verdict


def on_each_qemu(trials: Iterable[Trial]) -> pytest.MarkDecorator:
    """Have a test take `trial` and `label`: every trial on each QEMU that it names."""
    both = [(trial, label) for trial in trials for label in trial.labels]
    ids = [f"{trial.name}, {label}".replace(" ", "_") for trial, label in both]
    return pytest.mark.parametrize(("trial", "label"), both, ids=ids)
