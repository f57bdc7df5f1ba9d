"""What `make test` leaves to the soak is only more of the same."""

from __future__ import annotations

from selection import LABELS, Candidate, among_each_other, left_to_the_soak

LIVE = frozenset({"live"})


def on_all(name: str, marks: frozenset[str] = LIVE) -> list[Candidate]:
    return [Candidate(f"{name}[{label}]", marks, name) for label in LABELS]


def stay(candidates: list[Candidate]) -> set[str]:
    return {each.test for each in candidates} - left_to_the_soak(candidates)


def test_of_live_tests_that_differ_by_their_qemu_alone_one_stays() -> None:
    stays = stay(on_all("t.py::a") + on_all("t.py::b"))
    assert sorted(test.partition("[")[0] for test in stays) == ["t.py::a", "t.py::b"]


def test_each_keeps_its_qemu_and_every_qemu_has_its_share() -> None:
    tests = [each for number in range(40) for each in on_all(f"t.py::test_{number}")]
    stays = stay(tests)
    assert stays == stay(tests[::-1])
    assert all(sum(f"[{label}]" in test for test in stays) >= 3 for label in LABELS)


def test_what_starts_no_qemu_is_always_run() -> None:
    assert (
        left_to_the_soak([*on_all("t.py::a", frozenset()), Candidate("t.py::b", LIVE), Candidate("t.py::c", LIVE)])
        == set()
    )


def test_a_test_may_insist_on_every_qemu_or_leave_itself_to_the_soak() -> None:
    assert left_to_the_soak(on_all("t.py::a", LIVE | {"every_qemu"})) == set()
    assert left_to_the_soak([Candidate("t.py::b", LIVE | {"soak"})]) == {"t.py::b"}


def test_live_files_and_others_come_in_turn_and_each_file_stays_together() -> None:
    files = [["live 1", "live 2"], ["live 3"], ["a", "b"], ["c"], ["d"]]
    assert among_each_other(files, lambda test: "live" in test) == ["live 1", "live 2", "a", "b", "live 3", "c", "d"]
