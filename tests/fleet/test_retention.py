"""Nothing is thrown away that a person asked for, that shows something new, or that nobody understands."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from autopsy.errors import UsageError
from autopsy.fleet.places.opening import open_place
from autopsy.fleet.places.place import StoredFile
from autopsy.fleet.retention.decide import JudgedBundle, decide
from autopsy.fleet.retention.policy import DEFAULTS, KeptForAWhile, RetentionPolicy, read_policy
from autopsy.fleet.sending.send import pack, put
from support.built import fleets

NOW = 2_000_000_000.0
DAY = 86400


def stored(number: int, size: int = 1000) -> StoredFile:
    return StoredFile(f"bundles/00/{number:064x}.tar.zst", size, "", NOW)


def judged(number: int, days: float, **more: object) -> JudgedBundle:
    known: dict[str, object] = {
        "signature": "nbd-silent",
        "cluster": "nbd-silent: peer",
        "trigger": "watch",
        "confidence": "likely",
        "symbols": "none",
        "looks": 2,
        "undecided": 5,
        "error": "",
    }
    when = datetime.fromtimestamp(NOW - days * DAY, UTC).replace(tzinfo=None)
    return JudgedBundle(bundle=f"{number:064x}", time=when, **{**known, **more})  # type: ignore[arg-type]  # a test's own rows


def fates(rows: list[JudgedBundle], policy: RetentionPolicy | None = None, size: int = 1000) -> dict[int, str]:
    """Return the numbers of those that stay, with the reason; those that go have none."""
    files = [stored(int(each.bundle, 16), size) for each in rows]
    found = decide(files, {each.bundle: each for each in rows}, policy or read_policy(), NOW)
    assert len(found) == len(rows)
    return {int(fate.file.key[-72:-8], 16): fate.why if fate.keep else "" for fate in found}


def test_first_last_and_the_three_best_of_a_signature_stay_for_ever() -> None:
    rows = [judged(number, 1000 - number) for number in range(20)]
    rows[5] = judged(5, 995, confidence="proven")
    rows[9] = judged(9, 991, symbols="dwarf")
    rows[12] = judged(12, 988, undecided=0)
    told = fates(rows)
    assert {number for number, why in told.items() if why} == {0, 5, 9, 12, 19}
    assert told[0] == "one of the first of nbd-silent"
    assert told[19] == "one of the last of nbd-silent"
    assert told[5] == "one of the best of nbd-silent"


def test_the_rest_stays_for_ninety_days_and_as_long_as_there_is_room() -> None:
    rows = [judged(number, 100 - 10 * number, confidence="possible") for number in range(10)]
    keepers = [judged(100 + number, 2000 + number, confidence="proven") for number in range(3)]
    newest = judged(200, 0, confidence="possible")
    told = fates([*rows, *keepers, newest])
    assert {number for number, why in told.items() if not why} == {0}
    policy = msgspec.structs.replace(read_policy(), rest=KeptForAWhile(days=90, gigabytes=3.5e-6))
    told = fates([*rows, *keepers, newest], policy)
    assert {number for number, why in told.items() if not why} == {0, 1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize("trigger", ["human", "import"])
def test_what_a_person_asked_for_is_never_thrown_away_unasked(trigger: str) -> None:
    rows = [judged(number, 1000 - number, trigger=trigger if number == 7 else "watch") for number in range(20)]
    assert fates(rows)[7] == "a person asked for it"
    asked = msgspec.structs.replace(read_policy(), human=msgspec.structs.replace(read_policy().human, for_ever=False))
    assert fates(rows, asked)[7] == ""


def test_what_nobody_understands_stays() -> None:
    rows = [judged(number, 1000 - number) for number in range(20)]
    rows[7] = judged(7, 993, error="no answer in 30 s", trigger="", signature="")
    told = fates(rows)
    assert "could not be diagnosed" in told[7]
    found = decide([stored(99)], {}, read_policy(), NOW + 1000 * DAY)
    assert [(fate.keep, fate.why) for fate in found] == [(True, "not diagnosed yet")]


def test_unknown_wedges_are_kept_by_what_they_wait_for() -> None:
    rows = [judged(number, 1000 - number, signature="unknown", cluster=f"unknown: {number}") for number in range(9)]
    assert all(fates(rows).values())


def test_a_policy_is_a_file_whose_defaults_are_written_out(tmp_path: Path) -> None:
    assert fleets.command("prune", "x", "--show-policy").stdout.strip() == DEFAULTS.read_text().strip()
    for text in ("", "[rest]\ndays = 90", DEFAULTS.read_text() + "[more]\n", DEFAULTS.read_text().replace("90", "-1")):
        file = tmp_path / "policy.toml"
        file.write_text(text)
        with pytest.raises(UsageError):
            read_policy(file)


def test_prune_says_what_and_why_and_removes_just_that(tmp_path: Path) -> None:
    place = tmp_path / "place"
    for number in range(8):
        file = tmp_path / f"{number}.tar.zst"
        file.write_bytes(fleets.bundle(number, ("capture", "--out", "/var/lib/autopsy/expendable", "--", "102")))
        put(pack(file, tmp_path), str(place))
    fleets.index(place, place)
    file.write_bytes(fleets.bundle(99))
    put(pack(file, tmp_path), str(place))
    policy = tmp_path / "policy.toml"
    policy.write_text(DEFAULTS.read_text().replace("days = 90", "days = 1"))
    before = {each.key for each in open_place(str(place)).files()}
    told = fleets.asked("prune", place, "--policy", policy, "--dry-run")
    assert {each.key for each in open_place(str(place)).files()} == before
    gone = {each["key"] for each in told["bundles"] if not each["keep"]}
    assert 3 <= len(gone) <= 5
    assert sum(each["why"] == "not diagnosed yet" for each in told["bundles"]) == 1
    fleets.command("prune", place, "--policy", policy)
    assert {each.key for each in open_place(str(place)).files()} == before - gone
