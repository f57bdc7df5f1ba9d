from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from autopsy.bundle.reader import open_bundle
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from autopsy.replay import cases
from support import amputate, stored

# AUTOPSY_AMPUTATE=all takes every piece of every case away, one at a time: some minutes.
EVERYTHING = os.environ.get("AUTOPSY_AMPUTATE") == "all"
STEPS, FILES, CRUMBS = 5, 6, 7

# Both say that QEMU owes the guest nothing; which of the two it is shows only to whoever looks long enough.
SAME = ("guest-spins", "healthy")


def flip(whole: Diagnosis, less: Diagnosis) -> str:
    """Say how the answer became another one, empty where it stayed or became "unknown"."""
    if less.where in {whole.where, "unknown"} or (whole.signature, less.signature) == SAME:
        return ""
    return f"{whole.where} ({whole.signature}) → {less.where} ({less.signature})"


def body_of(case: stored.Stored) -> amputate.Body:
    return amputate.Body(open_bundle(case.bundle).manifest, stored.files(case.bundle))


def pieces(case: stored.Stored, body: amputate.Body) -> Iterator[amputate.Piece]:
    """Yield some pieces of each kind, the same ones in every run."""
    chance = random.Random(case.home.name)  # noqa: S311 - a sample, no secret
    for kind, number in (
        (amputate.steps(body), STEPS),
        (amputate.files(body, body.asked), FILES),
        (amputate.crumbs(body, body.asked), CRUMBS),
    ):
        found = list(kind)
        yield from found if EVERYTHING else chance.sample(found, min(number, len(found)))


def right(case: stored.Stored, found: Diagnosis) -> bool:
    told = cases.read_expected(case.home)
    return told is not None and told.where == found.where


@pytest.mark.timeout(600 if EVERYTHING else 120)
@pytest.mark.parametrize("case", stored.CASES, ids=lambda case: case.home.name)
def test_less_evidence_never_makes_another_answer(case: stored.Stored) -> None:
    body = body_of(case)
    whole = diagnose(gather_facts(body))
    if not right(case, whole):
        pytest.skip("its answer is not yet the right one")
    flipped = {piece.name: flip(whole, diagnose(gather_facts(piece.cut()))) for piece in pieces(case, body)}
    assert {name: how for name, how in flipped.items() if how} == {}


def test_a_body_without_any_evidence_is_unknown() -> None:
    body = body_of(stored.right())
    assert diagnose(gather_facts(body.without(*body.files))).where == "unknown"
