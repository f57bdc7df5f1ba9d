"""Questions that QEMU promises nothing about: none by default, last of all with --ask-unstable, never a harmful one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from autopsy.bundle import layout
from autopsy.bundle.manifest import Domain
from autopsy.bundle.reader import open_bundle
from autopsy.bundle.records import QmpExchange
from autopsy.capture.qmp import commands as questions
from autopsy.capture.qmp import stability, unstable
from autopsy.capture.qmp.commands import Qemu, Version
from autopsy.capture.step import Collected, Outcome, Skipped, TimedOut
from autopsy.linux.child import in_child
from support import fake_qmp, lab
from support.asking import DISKS, Capture, a_monitor, capture_of, capture_of_fake, impatient, patient
from tests.capture.qmp.test_virsh import STAND_IN
from tests.capture.test_capture import capture

NEWER = (stability.LAST_UNMARKED.major + 1, 0, 0)
DEFAULT_STEPS = (layout.QUERY_STATUS, layout.QUERY_BLOCK, layout.THROTTLE_GROUPS, layout.SECOND_EXPOSURE)


def marking(*commands: str) -> list[dict[str, Any]]:
    """Return a schema that marks these commands."""
    return [{"name": each, "meta-type": "command", "features": ["unstable"]} for each in commands]


def everything(capture: Capture) -> None:
    """Ask whatever a capture asks by default."""
    capture.witness()
    capture.query_status()
    capture.query_block(ask_anyway=True)
    capture.throttle_groups(ask_anyway=True)
    capture.ask_again()


def exchanges(bundle: Path, step: str) -> list[QmpExchange]:
    raw = open_bundle(bundle).read(layout.evidence(step, layout.QMP))
    return [msgspec.json.decode(line, type=QmpExchange) for line in raw.splitlines()]


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the fakes be of a version whose schema nobody knows."""
    monkeypatch.setitem(fake_qmp.GREETING["QMP"]["version"]["qemu"], "major", NEWER[0])


# None of them by default.


@pytest.mark.live
@pytest.mark.parametrize("label", [each.label for each in lab.qemu_builds()])
def test_a_capture_asks_a_real_qemu_only_what_its_own_schema_calls_stable(label: str, tmp_path: Path) -> None:
    with lab.qemu(lab.build(label), *DISKS) as machine:
        schema = machine.qmp("query-qmp-schema")
        answer = capture(machine.pid, tmp_path).answer
        assert machine.qmp("query-status")["status"] == "running"
    marked = {each["name"] for each in schema if "unstable" in each.get("features", ())}
    assert "x-query-virtio" in marked
    asked = [each for step in DEFAULT_STEPS for each in exchanges(Path(answer["bundle"]), step)]
    named = {each.question for each in asked}
    assert named - {questions.GREETING, questions.CAPABILITIES} == questions.STABLE
    assert not named & marked
    assert [each for each in named if each.startswith("x-") or each == "human-monitor-command"] == []
    read = {each.arguments["property"] for each in asked if each.question == questions.QOM_GET}
    assert read == {"limits"}
    assert {each.outcome for each in asked if each.question == questions.SCHEMA} == {"skipped"}
    assert questions.marks(schema)["unstable"] == []
    assert layout.UNSTABLE not in {step["name"] for step in answer["steps"]}


@pytest.mark.parametrize(
    ("version", "known"),
    [
        (Version(4, 2, 1), True),
        (Version(7, 2, 22), True),
        (Version(11, 1, 3), True),
        (Version(11, 0, 92), False),
        (Version(11, 2, 0), False),
        (Version(12, 0, 0), False),
        (Version(), False),
    ],
    ids=str,
)
def test_a_schema_is_asked_for_wherever_it_may_mark_a_question(version: Version, *, known: bool) -> None:
    assert bool(stability.known_unmarked(Qemu(version))) is known


@pytest.mark.usefixtures("newer")
def test_a_plainly_named_question_that_the_schema_marks_is_not_asked(short: Path) -> None:
    heard: list[str] = []
    answers: dict[str, object] = {
        questions.SCHEMA: marking("query-name", questions.BLOCKSTATS, questions.BLOCK, "x-blockdev-change"),
        questions.STATUS: {"status": "running", "running": True},
    }
    with capture_of_fake(short, fake_qmp.polite(answers, heard)) as capture:
        everything(capture)
        assert capture.of("query-name").outcome == "skipped"
        assert capture.of(questions.BLOCK, layout.QUERY_BLOCK).why == stability.why_not(
            "x-", Qemu(), unstable_too=False
        )
        assert capture.of(questions.SCHEMA).answer == {
            "entries": 4,
            "unstable": sorted([questions.BLOCK, questions.BLOCKSTATS, "query-name"]),
        }
    assert {"query-uuid", questions.JOBS, questions.NAMED_NODES} <= set(heard)
    assert not {"query-name", questions.BLOCKSTATS, questions.BLOCK} & set(heard)


# A QEMU that tells no schema, or a bad one.


def test_without_a_schema_names_alone_decide(short: Path) -> None:
    heard: list[str] = []
    known = [{"name": each} for each in questions.STABLE - {questions.SCHEMA}]
    answers: dict[str, object] = {questions.COMMANDS: known, questions.STATUS: {"status": "running", "running": True}}
    with capture_of_fake(short, fake_qmp.polite(answers, heard)) as capture:
        everything(capture)
        assert capture.of(questions.SCHEMA).why == "this QEMU does not know it"
    assert set(heard) == questions.STABLE - {questions.SCHEMA, questions.QOM_GET}


@pytest.mark.usefixtures("newer")
def test_a_qemu_that_is_silent_at_its_schema_is_asked_no_more(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch)
    with capture_of_fake(short, fake_qmp.hangs_at(questions.SCHEMA)) as capture:
        assert capture.query_status() == TimedOut("query-qmp-schema: no answer in 0.3 s")
        assert capture.of("query-name").outcome == "skipped"
        assert capture.run(layout.UNSTABLE, unstable.ask) == Skipped(
            "query-qmp-schema was not answered in qmp.query-status"
        )


HOSTILE = (
    b"7",
    b"null",
    b'{"name": "query-name", "features": ["unstable"]}',
    b'["query-name", null, [[]], {"name": {}, "meta-type": "command", "features": ["unstable"]}]',
    b'[{"name": "query-name", "meta-type": "command", "features": {"unstable": 1}}]',
    b'[{"name": "query-name", "meta-type": "command", "features": [["unstable"], {}, 5]}]',
    b'[{"name": "query-name", "meta-type": "event", "features": ["unstable"]}]',
    b'[{"name": "' + b"x" * (10 << 20) + b'"}]',
    b"[" + b'{"name": "y"},' * 250_000 + b"{}]",
    b"[" + b'{"name": "z", "features": [{}, {}, {}, {}]},' * 60_000 + b"{}]",
    b'{"a":' * 150 + b"1" + b"}" * 150,
)


@pytest.mark.usefixtures("newer")
@pytest.mark.parametrize("schema", HOSTILE, ids=lambda schema: f"{schema[:30]!r} {len(schema)}")
def test_a_hostile_schema_costs_bounded_time_and_memory_and_no_other_question(short: Path, schema: bytes) -> None:
    heard: list[str] = []

    def script(client: fake_qmp.Client) -> None:
        client.greet()
        while True:
            question = client.hear()
            heard.append(question["execute"])
            sent = schema if question["execute"] == questions.SCHEMA else b"{}"
            client.send(b'{"return": ' + sent + b', "id": "' + question["id"].encode() + b'"}\r\n')

    with capture_of_fake(short, script) as capture:

        def work() -> bytes:
            outcomes: list[Outcome] = []
            seconds: list[float] = []
            growth = fake_qmp.peak_growth(
                lambda: seconds.append(fake_qmp.seconds_of(lambda: outcomes.append(capture.query_status(seconds=20))))
            )
            return json.dumps([seconds[0], growth, type(outcomes[0]).__name__]).encode()

        seconds, growth, outcome = json.loads(in_child(work, 30))
        assert outcome == "Collected"
        assert growth < 150 << 20
        assert seconds < 10
        told = capture.folder / "evidence" / layout.QUERY_STATUS / layout.QMP
        assert told.stat().st_size < 100_000
    assert "query-name" in heard


def test_an_answer_that_is_too_big_costs_only_itself(short: Path) -> None:
    def script(client: fake_qmp.Client) -> None:
        client.greet()
        while True:
            question = client.hear()
            big = b" " * (20 << 20) if question["execute"] == questions.VERSION else b""
            client.send(b'{"return": {}, ' + big + b'"id": "' + question["id"].encode() + b'"}\r\n')

    with capture_of_fake(short, script) as capture:
        assert isinstance(capture.query_status(), Collected)
        assert capture.of(questions.VERSION).outcome == "error"
        assert capture.of(questions.VERSION).answer["class"] == "TooBig"
        assert capture.of("query-name").outcome == "answered"


# With --ask-unstable: last of all.


@pytest.mark.live
def test_unstable_questions_are_asked_after_all_else_was_taken(stock: lab.Build, tmp_path: Path) -> None:
    with lab.qemu(stock, *DISKS) as machine:
        answer = capture(machine.pid, tmp_path, "--ask-unstable").answer
        assert machine.qmp("query-status")["status"] == "running"
    *others, last = answer["steps"]
    assert tuple(step["name"] for step in others) == layout.STEPS
    assert (last["name"], last["outcome"]) == (layout.UNSTABLE, "Collected")
    bundle = Path(answer["bundle"])
    asked = exchanges(bundle, layout.UNSTABLE)
    assert {each.question for each in asked if each.outcome == "answered"} == {
        questions.CAPABILITIES,
        unstable.GRAPH,
        unstable.VIRTIO,
        unstable.VIRTIO_STATUS,
        unstable.QUEUE_STATUS,
    }
    rings = [each for each in asked if each.question == unstable.QUEUE_STATUS]
    assert {each.arguments["path"].split("/")[3] for each in rings} == {"vd0", "s0"}
    assert all(each.answer["inuse"] == 0 for each in rings)
    steps = {step.name: step for step in open_bundle(bundle).manifest.steps}
    assert min(each.asked_ns for each in asked) > max(steps[name].end_ns for name in layout.STEPS)


@pytest.mark.live
def test_qemu_11_lives_on_after_whatever_may_be_asked_and_dies_of_what_may_not(tmp_path: Path) -> None:
    with lab.qemu(lab.build("11"), *DISKS) as machine:
        answer = capture(machine.pid, tmp_path, "--ask-unstable").answer
        assert machine.qmp("query-status")["status"] == "running"
        asked = exchanges(Path(answer["bundle"]), layout.UNSTABLE)
        outcomes = {each.question: each.outcome for each in asked}
        assert outcomes[unstable.GRAPH] == outcomes[unstable.VIRTIO] == "answered"
        assert outcomes[unstable.VIRTIO_STATUS] == "skipped"
        assert unstable.QUEUE_STATUS not in outcomes
        path = next(each.arguments["path"] for each in asked if each.question == unstable.VIRTIO_STATUS)
        with pytest.raises((OSError, ValueError)):
            machine.qmp(unstable.VIRTIO_STATUS, path=path)
        lab.until("QEMU has aborted", lambda: not Path(f"/proc/{machine.pid}/maps").read_bytes(), seconds=60)


@pytest.mark.usefixtures("newer")
def test_what_the_schema_kept_from_being_asked_is_asked_then(short: Path) -> None:
    heard: list[str] = []
    answers: dict[str, object] = {
        questions.SCHEMA: marking("query-name", questions.BLOCK),
        questions.STATUS: {"status": "running", "running": True},
    }
    with capture_of_fake(short, fake_qmp.polite(answers, heard)) as capture:
        everything(capture)
        before = len(heard)
        assert isinstance(capture.run(layout.UNSTABLE, unstable.ask, ask_anyway=True), Collected)
    assert heard[before:] == ["query-name", questions.BLOCK, unstable.GRAPH, unstable.VIRTIO]


# Never a question that has harmed a QEMU.


@pytest.mark.parametrize(
    ("version", "spared"),
    [
        (Version(7, 2, 22), True),
        (Version(10, 0, 2), True),
        (Version(8, 2, 0), False),
        (Version(10, 1, 0), False),
        (Version(11, 1, 3), False),
        (Version(12, 0, 0), False),
        (Version(), False),
    ],
    ids=str,
)
def test_in_doubt_a_harmful_question_is_kept_from_a_version(version: Version, *, spared: bool) -> None:
    why = stability.why_not(unstable.VIRTIO_STATUS, Qemu(version), unstable_too=True)
    assert (why == "") is spared
    assert spared or "aborted QEMU 11.1.3" in why


def at_version(answers: dict[str, object], heard: list[str], version: tuple[int, int, int]) -> fake_qmp.Script:
    major, minor, micro = version
    told = {"qemu": {"major": major, "minor": minor, "micro": micro}, "package": ""}
    return fake_qmp.polite(
        {
            questions.VERSION: told,
            questions.STATUS: {"status": "running", "running": True},
            unstable.VIRTIO: [{"name": "virtio-blk", "path": "/machine/peripheral/vd0"}],
            **answers,
        },
        heard,
    )


def test_qemu_11_is_never_asked_what_aborts_it_nor_for_rings_that_vhost_may_hold(short: Path) -> None:
    heard: list[str] = []
    with capture_of_fake(short, at_version({}, heard, (11, 1, 3))) as capture:
        everything(capture)
        assert not [each for each in heard if each.startswith("x-")]
        assert isinstance(capture.run(layout.UNSTABLE, unstable.ask), Collected)
        assert "SIGABRT" in capture.of(unstable.VIRTIO_STATUS, layout.UNSTABLE).why
    assert [each for each in heard if each.startswith("x-")] == [unstable.GRAPH, unstable.VIRTIO]


@pytest.mark.parametrize(("started", "asked"), [(True, []), (False, [unstable.QUEUE_STATUS] * 4)])
def test_a_ring_that_vhost_holds_is_never_asked_for(short: Path, asked: list[str], *, started: bool) -> None:
    heard: list[str] = []
    answers: dict[str, object] = {unstable.VIRTIO_STATUS: {"vhost-started": started, "num-vqs": 4}}
    with capture_of_fake(short, at_version(answers, heard, (10, 0, 2))) as capture:
        capture.query_status()
        assert isinstance(capture.run(layout.UNSTABLE, unstable.ask), Collected)
    assert unstable.VIRTIO_STATUS in heard
    assert [each for each in heard if each == unstable.QUEUE_STATUS] == asked


# Through libvirtd.


@contextmanager
def through_virsh(place: Path, script: fake_qmp.Script, monkeypatch: pytest.MonkeyPatch) -> Iterator[Capture]:
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    patient(monkeypatch)
    path = place / "fake"
    virsh = place / "virsh"
    virsh.write_text(STAND_IN.format(settings=("ok", str(path))))
    virsh.chmod(0o755)
    domain = Domain(connection="qemu:///system", word="web1")
    with (
        fake_qmp.server(path, with_any_id(script)),
        capture_of(
            place, os.getpid(), a_monitor(place / "held", reachable=False), manager="libvirt", domain=domain
        ) as it,
    ):
        yield it


def with_any_id(script: fake_qmp.Script) -> fake_qmp.Script:
    """The stand-in for virsh gives its questions no id."""

    class Client(fake_qmp.Client):
        def answer(self, _question: dict[str, Any], value: object) -> None:
            self.say({"return": value})

    return lambda client: script(Client(client.socket, client.over))


def test_virsh_is_told_to_ask_nothing_unstable_either_with_stand_in(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    script = at_version({questions.SCHEMA: marking("query-name")}, heard, NEWER)
    with through_virsh(short, script, monkeypatch) as capture:
        assert isinstance(capture.query_status(seconds=100), Collected)
        assert capture.of("query-name").outcome == "skipped"
        assert {each.monitor for each in capture.told()} == {"virsh -c qemu:///system qemu-monitor-command"}
        assert isinstance(capture.query_block(seconds=100, ask_anyway=True), Collected)
        assert isinstance(capture.ask_again(seconds=100), Collected)
        assert not [each for each in heard if each.startswith("x-") or each == "query-name"]
        assert isinstance(capture.run(layout.UNSTABLE, unstable.ask, seconds=100), Collected)
    assert [each for each in heard if each.startswith("x-") or each == "query-name"] == [
        "query-name",
        unstable.GRAPH,
        unstable.VIRTIO,
    ]


def test_a_schema_of_10_mb_through_virsh_costs_only_itself_with_stand_in(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = at_version({questions.SCHEMA: [{"name": "x" * (10 << 20)}]}, [], NEWER)
    with through_virsh(short, script, monkeypatch) as capture:
        assert isinstance(capture.query_status(seconds=100), Collected)
        assert capture.of(questions.SCHEMA).answer["class"] == "TooBig"
        assert capture.of("query-name").outcome == "answered"
