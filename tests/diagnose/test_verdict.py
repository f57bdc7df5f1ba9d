"""A verdict may lose its sureness with its evidence, and never turn into another."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
import pytest

from autopsy.bundle import layout
from autopsy.bundle.sections import Section, parse, render
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from support.built import cases
from support.built import evidence as e
from support.built import families as cases_families
from tests.diagnose.test_signatures_families import CASES

FIRST: dict[str, Callable[[], e.Case]] = {
    "throttled": cases.throttled,
    "NBD": cases.nbd,
    "frozen, threads": cases.frozen_threads,
    "frozen, native": cases.frozen_native,
    "stopped": cases.stopped,
    "paused": cases.paused,
    "healthy, idle": cases.healthy_idle,
    "healthy, busy": cases.healthy_busy,
    "throttle deadlock": cases.deadlock,
}
ALL: dict[str, Callable[[], e.Case]] = {**FIRST, **{name: build for name, (build, _, _) in CASES.items()}}
SURENESS = {"proven": 2, "likely": 1, "possible": 0}
PARTS = ("/stack", "/syscall", "/wchan", "/status", "/schedstat", "/comm", "mountinfo")


def cuts(bundle: e.Fake) -> Iterator[tuple[str, e.Fake]]:
    """Yield the bundle without each file, without each step, and without each kind of section."""
    for path in bundle.files:
        yield path, bundle.without(path)
    for step in {path.split("/")[1] for path in bundle.files}:
        files = {path: data for path, data in bundle.files.items() if not path.startswith(f"evidence/{step}/")}
        yield step, e.Fake(bundle.manifest, files)
    for path, data in bundle.files.items():
        if not path.endswith((layout.TASKS, layout.FDS)):
            continue
        for part in PARTS:
            left = [section for section in parse(data) if not section.name.endswith(part)]
            yield f"{path} {part}", e.Fake(bundle.manifest, {**bundle.files, path: render(left)})


def halves(bundle: e.Fake) -> Iterator[tuple[str, e.Fake]]:
    """Yield the bundle with each file cut short, as a full disk leaves it."""
    for path, data in bundle.files.items():
        yield path, e.Fake(bundle.manifest, {**bundle.files, path: data[: len(data) // 2]})


@pytest.mark.parametrize("name", sorted(ALL))
def test_taking_one_piece_of_evidence_away_never_flips_the_answer(name: str) -> None:
    bundle = ALL[name]().bundle()
    whole = diagnose(gather_facts(bundle))
    for cut, left in (*cuts(bundle), *halves(bundle)):
        found = diagnose(gather_facts(left))
        if found.signature == whole.signature:
            assert SURENESS[found.confidence] <= SURENESS[whole.confidence], cut
        else:
            # Within one station the particular may become the general: a lost timer is still a wait for the throttle.
            assert found.where in {"unknown", whole.where}, f"without {cut}: {found.signature}: {found.headline}"


@pytest.mark.parametrize("name", sorted(ALL))
def test_every_claim_cites_evidence_that_the_bundle_holds(name: str) -> None:
    bundle = ALL[name]().bundle()
    found = diagnose(gather_facts(bundle))
    for claim in found.chain:
        assert claim.cites, claim.text
        for cite in claim.cites:
            assert cite.file in bundle.files, cite
            assert cite.line <= bundle.files[cite.file].count(b"\n") + 1, cite


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_diagnosis_survives_its_file(name: str) -> None:
    found = diagnose(gather_facts(ALL[name]().bundle()))
    assert msgspec.json.decode(msgspec.json.encode(found), type=Diagnosis) == found
    assert len(found.next_steps) == 3
    judged = {each.signature for each in (*found.ruled_out, *found.cannot_tell, *found.secondary)}
    assert found.signature not in judged


def test_an_empty_bundle_is_unknown_and_says_what_to_collect() -> None:
    found = diagnose(gather_facts(e.Fake(e.Case().bundle().manifest, {})))
    assert (found.where, found.signature) == ("unknown", "unknown")
    assert found.cannot_tell
    assert found.next_steps


def one_exposure(idle_ns: int) -> e.Case:
    case = e.Case(two=False)
    case.idle_threads()
    case.parked(e.NBD)
    case.monitor()
    case.disks(e.disk("d0", file="nbd://localhost:10809", idle_ns=idle_ns))
    case.command_line = ("-drive", "file=nbd://localhost:10809,format=raw,if=none,id=d0")
    return case


def test_one_exposure_of_a_request_in_flight_is_no_wedge() -> None:
    assert diagnose(gather_facts(one_exposure(1_000_000).bundle())).where == "unknown"


def test_one_exposure_is_enough_for_a_disk_that_has_long_completed_nothing() -> None:
    found = diagnose(gather_facts(one_exposure(60 * e.SECOND).bundle()))
    assert (found.signature, found.confidence) == ("nbd-silent", "likely")


def test_sixty_three_healthy_disks_and_a_stuck_one_is_about_that_one() -> None:
    case = e.Case()
    case.idle_threads()
    case.parked(e.WORKERS, 40, since="moved")
    case.parked(e.NBD)
    case.monitor()
    busy = [e.disk(f"d{number}", before=10, after=900) for number in range(63)]
    case.disks(*busy, e.disk("slow", file="nbd://storage:10809", driver="raw"))
    case.command_line = ("-drive", "file=nbd://storage:10809,format=raw,if=none,id=slow")
    found = diagnose(gather_facts(case.bundle()))
    assert (found.where, found.signature) == ("peer", "nbd-silent")
    assert [each for each in found.objects if each.startswith("d")] == []
    assert "slow" in found.objects
    assert found.paths[0].disk == "slow"
    assert found.paths[0].stuck_at is not None


def test_a_drain_is_the_effect_of_what_holds_the_request() -> None:
    case = cases_families.nested_poll("bdrv_drain_all_begin", e.NBD)
    case.command_line = ("-drive", "file=nbd://storage:10809,format=raw,if=none,id=d0")
    found = diagnose(gather_facts(case.bundle()))
    assert (found.where, found.signature) == ("peer", "nbd-silent")
    effects = {each.signature: each.because_of for each in found.secondary}
    assert effects["main-loop-nested-poll"] == "nbd-silent"
    assert effects["monitor-unanswered"] in {"nbd-silent", "main-loop-nested-poll"}


def test_a_name_that_is_a_command_is_not_filled_into_a_command() -> None:
    case = cases.stopped()
    bundle = case.bundle()
    target = msgspec.structs.replace(bundle.manifest.target, name="x; rm -rf /")
    hostile = e.Fake(msgspec.structs.replace(bundle.manifest, target=target), bundle.files)
    assert not [step for step in diagnose(gather_facts(hostile)).next_steps if "rm -rf" in step]


def test_a_vm_that_comes_back_while_it_is_looked_at_is_told() -> None:
    case = cases.healthy_idle()
    case.exchanges["qmp.query-status"] = []
    case.asked("(greeting)", {}, outcome="greeted")
    case.asked("query-status", None, outcome="no answer")
    found = diagnose(gather_facts(case.bundle()))
    assert any("lost wake-up" in each.text for each in found.side_effects)


def test_sections_with_the_names_of_others_do_not_replace_them() -> None:
    case = cases.stopped()
    bundle = case.bundle()
    path = layout.evidence(layout.WITNESS, layout.TASKS)
    forged = bundle.files[path] + render([Section(f"task/{e.PID}/status", b"State:\tS (sleeping)\n")])
    found = diagnose(gather_facts(e.Fake(bundle.manifest, {**bundle.files, path: forged})))
    assert found.signature == "process-stopped"
