"""A question that hangs costs its own answer, and no other's."""

from __future__ import annotations

import os
import signal
import time

from autopsy.linux.batch import MOST_HUNG, Answer, Unanswered, ask
from autopsy.linux.trouble import FailureKind


def hangs() -> bytes:
    time.sleep(60)
    return b"late"


def raises() -> bytes:
    raise PermissionError("no")


def dies() -> bytes:
    os.kill(os.getpid(), signal.SIGKILL)
    return b"never"


def good(answers: tuple[Answer, ...]) -> list[bytes]:
    return [each for each in answers if isinstance(each, bytes)]


def test_every_question_is_answered_by_one_child() -> None:
    pids = ask([lambda: str(os.getpid()).encode()] * 50, each=1, overall=5)
    assert len(set(good(pids))) == 1
    assert len(good(pids)) == 50
    assert ask([], each=1, overall=1) == ()


def test_one_that_hangs_raises_or_dies_costs_only_its_own_answer() -> None:
    answers = ask([lambda: b"1", hangs, lambda: b"2", raises, dies, lambda: b"3"], each=0.2, overall=5)
    assert good(answers) == [b"1", b"2", b"3"]
    hung, raised, died = (each for each in answers if isinstance(each, Unanswered))
    assert hung == Unanswered("no answer in 0.2 s", hung=True)
    assert raised == Unanswered("PermissionError: no", trouble=FailureKind.NOT_PERMITTED)
    assert "ended without an answer" in died.why
    assert not died.hung


def test_questions_are_given_up_when_too_many_hang() -> None:
    answers = ask([hangs] * (MOST_HUNG + 2), each=0.1, overall=60)
    assert [isinstance(each, Unanswered) and each.hung for each in answers] == [True] * MOST_HUNG + [False] * 2


def test_the_time_for_all_of_them_holds() -> None:
    answers = ask([hangs, hangs, lambda: b"not reached"], each=30, overall=0.3)
    assert good(answers) == []  # not even b"late"


def test_answers_that_are_too_large_leave_room_for_the_others() -> None:
    answers = ask([lambda: b"1", lambda: bytes(40 << 20), lambda: b"2"], each=5, overall=10)
    assert good(answers) == [b"1", b"2"]
    assert isinstance(answers[1], Unanswered)


def test_what_one_user_lets_hang_is_held_against_that_user_alone() -> None:
    questions = [hangs, hangs, *[lambda: b"theirs"] * 3, *[lambda: b"ours"] * 20]
    answers = ask(questions, each=0.2, overall=30, owners=[1000] * 5 + [0] * 20)
    assert good(answers) == [b"ours"] * 20
    assert [each.why for each in answers[2:5] if isinstance(each, Unanswered)] == [
        "not asked: too many others of the same user hung"
    ] * 3
