"""The first screen proves its verdict by sentences of different kinds, each with a line out of the evidence."""

from __future__ import annotations

import re

import pytest

from autopsy.bundle.reader import open_bundle
from autopsy.diagnose.diagnosis import Claim
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.cite import Cite
from autopsy.facts.evidence import Evidence
from autopsy.facts.gather import gather_facts
from autopsy.report.proof.json_quotes import quote_of_answer, quote_of_document
from autopsy.report.proof.proofs import Proof, proofs
from autopsy.report.proof.quotes import quote
from support import reports
from support.built import evidence as e

KINDS = ("throttle-deadlock-10.0.2", "nbd-silent-10.0.2", "frozen-threads-7.2", "one-of-64-7.2", "out-of-space-7.2")


def shown(case: str) -> tuple[Evidence, tuple[Proof, ...]]:
    bundle = open_bundle(reports.FIXTURES / case / "bundle.tar.zst")
    return bundle, proofs(bundle, diagnose(gather_facts(bundle)))


@pytest.mark.parametrize("case", KINDS)
def test_what_is_quoted_stands_in_the_evidence_that_is_cited(case: str) -> None:
    bundle, found = shown(case)
    assert len(found) == 3
    for proof in found:
        text = " ".join(" ".join(bundle.read(cite.file).decode("utf-8", "replace") for cite in proof.cites).split())
        raw, compact = text, re.sub(r"\s", "", text)
        for piece in proof.quote.partition(": {")[2].split("…") if ": {" in proof.quote else proof.quote.split("…"):
            told = piece.strip("{},")
            assert told in raw or re.sub(r"\s", "", told) in compact or told in {c.text for c in proof.cites}, told


@pytest.mark.parametrize("case", ["nbd-silent-10.0.2", "backup-holds-writes-10.0.2", "throttle-deadlock-10.0.2"])
def test_three_proofs_are_quoted_from_three_kinds_of_evidence(case: str) -> None:
    bundle, found = shown(case)
    assert len({quote(bundle, Claim(text=proof.text, cites=proof.cites)).file for proof in found}) == 3


def test_sentences_that_differ_in_their_numbers_are_one_proof_with_a_count() -> None:
    _, found = shown("frozen-threads-7.2")
    assert found[0].text.endswith("; likewise 3 more.")
    assert "percpu_rwsem_wait" in found[0].quote
    assert len({re.sub(r"\d+", "", proof.text) for proof in found}) == 3


def test_the_server_that_is_stopped_is_among_the_proofs() -> None:
    _, found = shown("nbd-silent-10.0.2")
    assert found[-1].quote == "State: T (stopped)"
    assert '"send_queue":241408' in found[1].quote


def test_of_64_disks_the_one_that_is_stuck_is_quoted() -> None:
    _, found = shown("one-of-64-7.2")
    limits = next(proof.quote for proof in found if proof.quote.startswith("query-block: "))
    assert '"device":"drive-scsi37"' in limits
    assert '"bps":1' in limits


def test_an_answer_is_quoted_without_what_the_sentence_does_not_speak_of() -> None:
    answer = b'{"status":"paused","singlestep":false,"running":false}'
    line = b'{"question":"query-status","outcome":"answered","ms":1,"answer":' + answer + b"}"
    quoted = quote_of_answer([line], "The run state is paused.", 150)
    assert quoted == 'query-status: {"status":"paused",…"running":false}'


def test_a_counter_of_another_node_is_not_taken_for_the_disk_s_own() -> None:
    line = (
        b'{"question":"query-blockstats","answer":[{"device":"d0","parent":{"stats":{"rd_operations":7}},'
        b'"stats":{"rd_operations":5}},{"device":"d1","stats":{"rd_operations":6}}]}'
    )
    quoted = quote_of_answer([line], "Between the two snapshots disk d1 completed 6.", 150)
    assert quoted == 'query-blockstats: {"device":"d1","stats":{"rd_operations":6}}'
    assert '"rd_operations":5' in quote_of_answer([line], "Disk d0 completed none.", 150)


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 100_000, b'"x"', b'{"a":1}', '{"\u202e":{}}'.encode()])
def test_json_that_is_broken_or_says_nothing_is_not_quoted(data: bytes) -> None:
    assert quote_of_document(data, "Thread 7 waits for the mutex.", 150) == ""


def test_a_quote_is_short_however_long_the_line_is() -> None:
    case = e.Case()
    case.idle_threads(vcpus=1)
    long = "x" * 5000 + " owner 4711 " + "y" * 5000
    bundle = e.Fake(case.bundle().manifest, {"evidence/a.txt": long.encode()})
    quoted = quote(bundle, Claim(text="The owner is 4711.", cites=(Cite("evidence/a.txt", 1),)))
    assert len(quoted.text) < 160
    assert "owner" in quoted.text
