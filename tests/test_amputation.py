from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

import amputate
import stored
from autopsy.bundle.reader import open_bundle
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather
from autopsy.replay import cases

# AUTOPSY_AMPUTATE=all takes every piece of every case away, one at a time: some minutes.
EVERYTHING = os.environ.get("AUTOPSY_AMPUTATE") == "all"
STEPS, FILES, CRUMBS = 5, 6, 7

# (case, piece): why the answer flips when that piece is gone. An entry that is no longer true fails.
FLIPS: dict[tuple[str, str], str] = {
    (case, f"{piece} evidence/{file}"): why
    for case, pieces, file, why in (
        (
            "backup-holds-writes-10.0.2",
            ("file", "end of"),
            "second-exposure/coroutines.json",
            "a stalled job takes the place of a request that was looked at once",
        ),
        (
            "drain-over-nbd-10.0.2-debug",
            ("file", "end of"),
            "gdb.threads/coroutines.json",
            "a VM that is being paused takes the place of the main loop that never comes round",
        ),
        (
            "migrate-unread-7.2",
            ("section task/11508/syscall of",),
            "witness/tasks.txt",
            "without its call, a migration's thread that waits is overlooked",
        ),
        (
            "migrate-unread-10.0.2-debug",
            ("section task/12121/syscall of",),
            "witness/tasks.txt",
            "without its call, a migration's thread that waits is overlooked",
        ),
        *(
            (
                "savevm-stalled-10.0.2-debug",
                ("thread 9821 in", "section task/9821/schedstat of"),
                file,
                "the run state takes the place of a worker that cannot be told to have slept through",
            )
            for file in ("witness/tasks.txt", "second-exposure/tasks.txt")
        ),
        (
            "throttled-writes-10.0.2",
            ("file", "end of", "query-block in"),
            "qmp.query-block/qmp.jsonl",
            "reads that flow make writes look well that stand still",
        ),
        (
            "throttled-writes-10.0.2",
            ("file", "end of"),
            "second-exposure/coroutines.json",
            "reads that flow make writes look well that stand still",
        ),
    )
    for piece in pieces
} | {
    ("throttled-writes-10.0.2", "step qmp.query-block"): "reads that flow make writes look well that stand still",
}


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
        found = [piece for piece in kind if (case.home.name, piece.name) not in FLIPS]
        yield from found if EVERYTHING else chance.sample(found, min(number, len(found)))


def right(case: stored.Stored, found: Diagnosis) -> bool:
    told = cases.read_expected(case.home)
    return told is not None and told.where == found.where


@pytest.mark.timeout(600 if EVERYTHING else 120)
@pytest.mark.parametrize("case", stored.CASES, ids=lambda case: case.home.name)
def test_less_evidence_never_makes_another_answer(case: stored.Stored) -> None:
    body = body_of(case)
    whole = diagnose(gather(body))
    if not right(case, whole):
        pytest.skip("its answer is not yet the right one")
    flipped = {piece.name: flip(whole, diagnose(gather(piece.cut()))) for piece in pieces(case, body)}
    assert {name: how for name, how in flipped.items() if how} == {}


@pytest.mark.parametrize(
    ("name", "piece"),
    [pytest.param(*key, marks=pytest.mark.xfail(reason=why, strict=True)) for key, why in FLIPS.items()],
)
def test_a_known_flip_is_still_one(name: str, piece: str) -> None:
    case = next(each for each in stored.CASES if each.home.name == name)
    body = body_of(case)
    whole = diagnose(gather(body))
    kinds = (amputate.steps(body), amputate.files(body, body.asked), amputate.crumbs(body, body.asked))
    cut = next(each for kind in kinds for each in kind if each.name == piece)
    assert flip(whole, diagnose(gather(cut.cut()))) == ""


def test_a_body_without_any_evidence_is_unknown() -> None:
    body = body_of(stored.right())
    assert diagnose(gather(body.without(*body.files))).where == "unknown"
