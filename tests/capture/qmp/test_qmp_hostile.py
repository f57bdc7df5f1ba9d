"""Monitors that are left alone, and servers on real sockets that misbehave."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from autopsy.bundle import layout
from autopsy.bundle.manifest import MonitorSocket
from autopsy.capture.qmp import commands
from autopsy.capture.step import Collected, Failed, Skipped, TimedOut
from autopsy.linux.child import in_child
from support import fake_qmp, lab
from support.asking import (
    a_monitor,
    capture_of,
    capture_of_fake,
    impatient,
)

# Monitors that are not touched.


def test_a_vm_without_a_monitor_is_skipped(short: Path) -> None:
    with capture_of(short, os.getpid()) as capture:
        assert capture.query_status() == Skipped("this VM has no monitor")


def test_other_monitors_are_told_and_left_alone(short: Path) -> None:
    monitors = (
        MonitorSocket(protocol="hmp", transport="stdio", address="stdio"),
        MonitorSocket(protocol="qmp", transport="tcp", address="localhost:4444"),
        a_monitor(short / "gone", reachable=False),
    )
    with capture_of(short, os.getpid(), *monitors) as capture:
        outcome = capture.query_status()
        assert isinstance(outcome, Skipped)
        for words in ("stdio is a human monitor", "localhost:4444, which is left alone", "gone cannot be reached"):
            assert words in outcome.why
        assert [each.outcome for each in capture.told()] == ["skipped"] * 3


def test_a_socket_that_is_gone_is_absent(short: Path) -> None:
    with capture_of(short, os.getpid(), a_monitor(short / "gone")) as capture:
        assert isinstance(capture.query_status(), Failed)
        assert capture.outcomes() == {commands.GREETING: "absent"}


def test_another_programs_socket_is_not_questioned(short: Path) -> None:
    heard: list[str] = []
    with (
        fake_qmp.server(short / "fake", fake_qmp.polite({}, heard)),
        lab.qemu("7.2") as machine,
        capture_of(short, machine.pid, a_monitor(short / "fake")) as capture,
    ):
        assert capture.query_status() == Failed("this VM does not listen there")
    assert heard == []


@pytest.mark.parametrize("kind", ["fifo", "file"])
def test_what_is_no_socket_is_refused(short: Path, kind: str) -> None:
    path = short / "x"
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.write_text("")
    with capture_of(short, os.getpid(), a_monitor(path)) as capture:
        assert isinstance(capture.query_status(), Failed)


# Servers that misbehave.


def test_a_monitor_that_never_answered_is_not_a_no(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch)
    with capture_of_fake(short, fake_qmp.never_negotiates) as capture:
        assert capture.query_status() == TimedOut("qmp_capabilities: no answer in 0.3 s")
        assert capture.of(commands.GREETING).outcome == "greeted"
        assert capture.of(commands.CAPABILITIES).outcome == "no answer"
        assert capture.of("query-status").outcome == "skipped"


def test_a_monitor_that_stays_silent_says_nothing_where_another_one_answers(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch)
    first, second = short / "first", short / "second"
    with (
        fake_qmp.server(first, fake_qmp.never_greets),
        fake_qmp.server(second, fake_qmp.polite({"qom-list": []})),
        capture_of(short, os.getpid(), a_monitor(first), a_monitor(second)) as capture,
    ):
        capture.witness()
        assert isinstance(capture.query_status(), Collected)
        assert [each.outcome for each in capture.told()[:2]] == ["silent", "greeted"]
        assert isinstance(capture.query_block(ask_anyway=True), Collected)
        assert isinstance(capture.ask_again(ask_anyway=True), Collected)
        again = capture.told(layout.SECOND_EXPOSURE)
        assert {each.monitor for each in again} == {str(second)}


def test_two_monitors_that_stay_silent_are_asked_no_more(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch)
    first, second = short / "first", short / "second"
    with (
        fake_qmp.server(first, fake_qmp.never_greets),
        fake_qmp.server(second, fake_qmp.never_greets),
        capture_of(short, os.getpid(), a_monitor(first), a_monitor(second)) as capture,
    ):
        assert isinstance(capture.query_status(), TimedOut)
        assert capture.query_block() == Skipped("(greeting) was not answered in qmp.query-status")


def test_each_exchange_is_on_disk_before_the_next_begins(short: Path) -> None:
    seen: list[int] = []

    def script(client: fake_qmp.Client) -> None:
        client.greet()
        while True:
            question = client.hear()
            seen.append(len(capture.told()))
            client.answer(question, {})

    with capture_of_fake(short, script) as capture:
        capture.query_status()
        asked = [each for each in capture.told() if each.outcome == "answered"]
        assert seen == sorted(set(seen))
        assert len(seen) == len(asked) - 1  # qmp_capabilities was heard by greet()
        path = capture.folder / "evidence" / layout.QUERY_STATUS / layout.QMP
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_only_questions_that_read_memory_are_asked_without_the_guard(short: Path) -> None:
    heard: list[str] = []
    with capture_of_fake(short, fake_qmp.polite({}, heard)) as capture:
        capture.query_status()
    safe = {*commands.FIRST, *commands.MEMORY, *commands.COUNTERS, commands.QOM_LIST}
    assert set(heard) <= safe


def test_what_a_qemu_says_it_does_not_know_is_not_asked(short: Path) -> None:
    heard: list[str] = []
    answers: dict[str, object] = {"query-commands": [{"name": "query-status"}, {"name": "query-uuid"}]}
    with capture_of_fake(short, fake_qmp.polite(answers, heard)) as capture:
        capture.query_status()
        assert capture.of("query-name").why == "this QEMU does not know it"
    assert "query-uuid" in heard
    assert "query-name" not in heard


def test_an_error_is_an_answer(short: Path) -> None:
    refusal = b'{"error": {"class": "GenericError", "desc": "no \\u001b[31m"}, "id": "ID"}\r\n'
    with capture_of_fake(short, fake_qmp.answers_with(refusal)) as capture:
        assert isinstance(capture.query_status(), Collected)
        assert capture.of("query-status").outcome == "error"
        assert capture.of("query-status").answer == {"class": "GenericError", "desc": "no \x1b[31m"}


def test_a_vm_that_dies_while_it_is_asked_is_a_failure(short: Path) -> None:
    with capture_of_fake(short, fake_qmp.hangs_up_at("query-version")) as capture:
        assert capture.query_status() == Failed("query-version: the connection broke: QEMU closed it")
        assert capture.of("query-version").outcome == "no answer"


@pytest.mark.parametrize(
    "greeting",
    [
        b"QEMU 7.2.22 monitor - type 'help' for more information\r\n",
        b"\xff\xfe\xfd\n",
        b"[" * 100_000 + b"\n",
        b'{"QMP": 7}\n',
        b'"x"\n',
        b"\x1b[2J" * 1000 + b"\n",
        b'{"QMP": {"version": {"qemu": [' + b"0," * 600_000 + b"0]}}}\n",
    ],
)
def test_what_is_no_greeting_is_refused_in_few_words(short: Path, greeting: bytes) -> None:
    with capture_of_fake(short, fake_qmp.greets_with(greeting)) as capture:
        outcome = capture.query_status()
        assert isinstance(outcome, Failed)
        assert outcome.why.isprintable()
        assert len(outcome.why) < 500
        assert capture.outcomes() == {commands.GREETING: "refused"}


@pytest.mark.parametrize(
    "answer",
    [
        b"\xff\xfe\n",
        b'{"return": ' + b"[" * 100_000 + b"\n",
        b"nonsense\n",
        b'{"error": {"class": "GenericError", "desc": "JSON parse error"}}\n',
    ],
)
def test_an_answer_that_cannot_be_read_ends_the_conversation_with_its_cause(short: Path, answer: bytes) -> None:
    with capture_of_fake(short, fake_qmp.answers_with(answer)) as capture:
        outcome = capture.query_status()
        assert isinstance(outcome, Failed)
        assert "query-status: the connection broke" in outcome.why
        assert len(outcome.why) < 500


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b'"\\ud800x"', "?x"),
        (b'{"\\ud800": 1}', {"?": 1}),
        (b"123456789012345678901234567890", "0x18ee90ff6c373e0ee4e3f0ad2"),
        (b"NaN", None),
        (b"[" * 600 + b"]" * 600, ...),
    ],
)
def test_an_odd_answer_is_stored_so_that_every_reader_can_take_it(short: Path, sent: bytes, kept: object) -> None:
    with capture_of_fake(short, fake_qmp.answers_with(b'{"return": %b, "id": "ID"}\n' % sent)) as capture:
        assert isinstance(capture.query_status(), Collected)
        stored = capture.of("query-status").answer
        assert kept is ... or stored == kept
        json.dumps(stored)


def test_answers_to_nobodys_question_are_dropped(short: Path) -> None:
    strays = b'{"return": 1, "id": "x"}\n{"return": 2}\n{"return": 3, "id": []}\n{"return": 4, "id": 5}\n'
    with capture_of_fake(
        short, fake_qmp.answers_with(strays + b'{"return": {"status": "ok"}, "id": "ID"}\n')
    ) as capture:
        assert isinstance(capture.query_status(), Collected)
        assert capture.of("query-status").answer == {"status": "ok"}


@pytest.mark.parametrize(
    "script",
    [
        fake_qmp.never_greets,
        fake_qmp.drips,
        fake_qmp.hangs_at("query-status"),
        fake_qmp.endless(b"x" * 65536, greeted=False),
        fake_qmp.endless(b"x" * 65536),
        fake_qmp.endless(b'{"event": "X"}\n' * 4000),
        fake_qmp.endless(b'{"return": 1, "id": "x"}\n' * 4000),
        fake_qmp.endless(b'{"event": "' + b"x" * (1 << 20) + b'"}\n'),
        fake_qmp.greets_with(b'{"QMP": ' + b"[[]," * 120_000),
    ],
)
def test_no_server_keeps_us_long_or_makes_us_big(
    short: Path, script: fake_qmp.Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch)
    with capture_of_fake(short, script) as capture:

        def work() -> bytes:
            seconds = fake_qmp.seconds_of(capture.query_status)
            return json.dumps(seconds).encode()

        def measured() -> bytes:
            found: list[bytes] = []
            growth = fake_qmp.peak_growth(lambda: found.append(work()))
            return json.dumps([json.loads(found[0]), growth]).encode()

        seconds, growth = json.loads(in_child(measured, 20))
        assert growth < 100 << 20
        assert seconds < 10
        assert capture.told()[-1].outcome in {"skipped", "silent", "refused"}


def test_a_flood_of_events_does_not_drown_the_answers(short: Path) -> None:
    with capture_of_fake(short, fake_qmp.flood_of_events) as capture:
        capture.query_status(seconds=5)
        assert capture.of("query-status").answer == {"status": "running"}


def test_questions_that_do_not_fit_the_steps_time_are_not_asked(short: Path) -> None:
    def slow(client: fake_qmp.Client) -> None:
        client.greet()
        while True:
            question = client.hear()
            client.over.wait(0.2)
            client.answer(question, {})

    with capture_of_fake(short, slow) as capture:
        outcome = capture.query_status(seconds=1.0)
        assert isinstance(outcome, TimedOut)
        assert capture.told()[-1].outcome == "skipped"


def test_a_path_too_long_for_a_socket_address_is_reached_all_the_same(short: Path) -> None:
    deep = short / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    here = os.open(deep, os.O_PATH)
    try:
        with fake_qmp.server(Path(f"/proc/self/fd/{here}/fake"), fake_qmp.polite({})):
            monitor = MonitorSocket(
                protocol="qmp",
                transport="unix",
                address=f"/proc/self/fd/{here}/fake",
                reachable=str(deep / "fake"),
            )
            with capture_of(short, os.getpid(), monitor) as capture:
                assert isinstance(capture.query_status(), Collected)
    finally:
        os.close(here)
