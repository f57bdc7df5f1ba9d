"""The steps that ask QEMU's monitor: real QEMUs, and servers that misbehave on real sockets."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import fake_qmp
import lab
from asking import (
    DISKS,
    Capture,
    a_monitor,
    capture_of,
    capture_of_fake,
    capture_of_qemu,
    client_of,
    other_client_of,
)
from autopsy.bundle import names
from autopsy.bundle.schema import Monitor
from autopsy.capture import interview, qmp, questions, reception
from autopsy.capture.child import in_child
from autopsy.capture.step import Collected, Failed, Outcome, Skipped, TimedOut


def impatient(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.3) -> None:
    """Give answers less time, so that the tests of silence are quick."""
    monkeypatch.setattr(interview, "QUESTION_SECONDS", seconds)
    monkeypatch.setattr(reception, "GREETING_SECONDS", seconds)
    monkeypatch.setattr(reception, "SLOT_SECONDS", seconds)


# Real QEMUs.


@pytest.mark.live
def test_a_healthy_vm_answers_all_three_steps_and_then_again(build: lab.Build, short: Path) -> None:
    with capture_of_qemu(short, build, *DISKS) as (capture, _):
        capture.witness()
        assert isinstance(capture.query_status(), Collected)
        assert isinstance(capture.query_block(), Collected)
        assert isinstance(capture.throttle_groups(), Collected)
        assert isinstance(capture.ask_again(), Collected)
        told = [each for step in qmp.BEFORE for each in capture.told(step)]
        assert {each.outcome for each in told} <= {"greeted", "answered", "skipped"}
        assert capture.of("query-status").answer["status"] == "running"
        queues = [each for each in told if each.question == questions.QUEUE_STATUS]
        assert {each.arguments["path"].split("/")[3] for each in queues} == {"vd0", "s0"}
        assert all(each.answer["inuse"] == 0 for each in queues)
        (limits,) = [each for each in told if each.question == questions.QOM_GET]
        assert limits.arguments["path"] == "/objects/tg0"
        assert limits.answer["iops-total"] == 100
        (disk,) = [each for each in capture.of("query-block", names.QUERY_BLOCK).answer if each["device"] == "d0"]
        assert disk["inserted"]["iops"] == 50
        again = capture.outcomes(names.SECOND_EXPOSURE)
        assert again["query-blockstats"] == again[questions.QUEUE_STATUS] == "answered"
        assert not set(again) & {questions.BLOCK, questions.NAMED_NODES, questions.QOM_GET}


@pytest.mark.live
def test_counters_that_take_a_lock_wait_for_the_guard_on_an_old_qemu_with_iothreads(short: Path) -> None:
    with capture_of_qemu(short, "7.2", *DISKS) as (capture, _):
        capture.witness()
        capture.query_status()
        assert capture.of("query-blockstats").outcome == "skipped"
        assert capture.of("query-jobs").outcome == "answered"
        capture.query_block()
        assert capture.of("query-blockstats", names.QUERY_BLOCK).outcome == "answered"


@pytest.mark.live
def test_an_old_qemu_without_iothreads_tells_its_counters_at_once(short: Path) -> None:
    with capture_of_qemu(short, "7.2") as (capture, _):
        capture.query_status()
        assert capture.of("query-blockstats").outcome == "answered"


@pytest.mark.live
def test_a_busy_monitor_names_who_holds_it(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.need_root()
    impatient(monkeypatch)
    with capture_of_qemu(short, "7.2") as (capture, machine), other_client_of(machine.monitor) as pid:
        outcome = capture.query_status()
        greeting = capture.of(questions.GREETING)
        assert greeting.outcome == "busy"
        assert greeting.peer == f"{Path('/proc/self/comm').read_text().strip()} (pid {pid})"
        assert outcome == Skipped(f"the monitor is held by {greeting.peer}")
        assert capture.query_block() == Skipped("no monitor greeted us in qmp.query-status")


@pytest.mark.live
def test_a_short_lived_client_is_waited_for(short: Path) -> None:
    lab.need_root()
    with capture_of_qemu(short, "7.2") as (capture, machine), other_client_of(machine.monitor, 0.7) as pid:
        assert isinstance(capture.query_status(), Collected)
        assert f"(pid {pid})" in capture.of(questions.GREETING).why


@pytest.mark.live
def test_the_free_one_of_two_monitors_is_asked(short: Path) -> None:
    lab.need_root()
    with lab.qemu("7.2") as machine, client_of(machine.monitor):
        monitors = (a_monitor(machine.monitor), a_monitor(machine.control))
        with capture_of(short, machine.pid, *monitors) as capture:
            assert isinstance(capture.query_status(), Collected)
            assert capture.of("query-status").monitor == str(machine.control)
            assert capture.outcomes()[questions.GREETING] == "greeted"


@pytest.mark.live
def test_a_stopped_vm_is_silent_and_our_late_questions_harm_nobody(
    build: lab.Build, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch)
    with capture_of_qemu(short, build) as (capture, machine):
        with lab.stopped(machine):
            assert capture.query_status() == TimedOut("(greeting): no answer in 0.3 s")
            assert capture.outcomes() == {questions.GREETING: "silent"}
            assert capture.query_block() == Skipped("(greeting) was not answered in qmp.query-status")
        assert fake_qmp.ask(machine.monitor, "query-status")["status"] == "running"


@pytest.mark.live
def test_a_vm_that_stops_in_the_middle_gets_its_late_answer_dropped(
    build: lab.Build, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch)
    real_ask = interview.Interview.ask

    async def stop_before(self: interview.Interview, question: str, *more: Any, **other: Any) -> Any:
        if question == questions.IOTHREADS:
            machine.process.stop()
        return await real_ask(self, question, *more, **other)

    monkeypatch.setattr(interview.Interview, "ask", stop_before)
    with capture_of_qemu(short, build) as (capture, machine):
        try:
            assert capture.query_status() == TimedOut("query-iothreads: no answer in 0.3 s")
        finally:
            machine.process.resume()
        assert capture.of(questions.IOTHREADS).outcome == "no answer"
        later = capture.told()[capture.told().index(capture.of(questions.IOTHREADS)) + 1 :]
        assert {each.outcome for each in later} == {"skipped"}
        assert {each.why for each in later} == {"query-iothreads was not answered"}
        assert fake_qmp.ask(machine.monitor, "query-name") == {"name": "t"}
        assert capture.ask_again() == Skipped("query-iothreads was not answered in qmp.query-status")


@pytest.mark.live
def test_a_vhost_ring_is_never_asked_for(short: Path) -> None:
    started = {"vhost-started": True, "num-vqs": 4}
    assert list(questions.queues(started)) == []
    assert list(questions.queues({"vhost-started": False, "num-vqs": 4})) == [0, 1, 2, 3]
    heard: list[str] = []
    answers = {
        questions.VIRTIO: [{"name": "virtio-blk", "path": "/machine/peripheral/vhost-user"}],
        questions.VIRTIO_STATUS: started,
    }
    with capture_of_fake(short, fake_qmp.polite(answers, heard)) as capture:
        assert isinstance(capture.query_status(), Collected)
    assert questions.VIRTIO_STATUS in heard
    assert questions.QUEUE_STATUS not in heard


# Monitors that are not touched.


def test_a_vm_without_a_monitor_is_skipped(short: Path) -> None:
    with capture_of(short, os.getpid()) as capture:
        assert capture.query_status() == Skipped("this VM has no monitor")


def test_other_monitors_are_told_and_left_alone(short: Path) -> None:
    monitors = (
        Monitor(protocol="hmp", transport="stdio", address="stdio"),
        Monitor(protocol="qmp", transport="tcp", address="localhost:4444"),
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
        assert capture.outcomes() == {questions.GREETING: "absent"}


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
        assert capture.of(questions.GREETING).outcome == "greeted"
        assert capture.of(questions.CAPABILITIES).outcome == "no answer"
        assert capture.of("query-status").outcome == "skipped"


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
        path = capture.folder / "evidence" / names.QUERY_STATUS / names.QMP
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_only_questions_that_read_memory_are_asked_without_the_guard(short: Path) -> None:
    heard: list[str] = []
    with capture_of_fake(short, fake_qmp.polite({}, heard)) as capture:
        capture.query_status()
    safe = {*questions.FIRST, *questions.MEMORY, *questions.COUNTERS, questions.VIRTIO, questions.QOM_LIST}
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
        assert capture.outcomes() == {questions.GREETING: "refused"}


@pytest.mark.parametrize(
    "answer",
    [
        b"\xff\xfe\n",
        b'{"return": ' + b"[" * 100_000 + b"\n",
        b"nonsense\n",
        b'{"return": [' + b"0," * 600_000 + b'0], "id": "ID"}\n',
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
            monitor = Monitor(
                protocol="qmp",
                transport="unix",
                address=f"/proc/self/fd/{here}/fake",
                reachable=str(deep / "fake"),
            )
            with capture_of(short, os.getpid(), monitor) as capture:
                assert isinstance(capture.query_status(), Collected)
    finally:
        os.close(here)


# libvirt, with a stand-in for virsh on PATH: it asks a real QEMU's monitor as libvirtd would.

STAND_IN = """#!/usr/bin/env python3
import json, socket, sys, time
MODE, MONITOR = {settings}
assert sys.argv[1:4] == ["-q", "-c", "qemu:///system"], sys.argv
assert "--domain=web1" in sys.argv
if "domcontrol" in sys.argv:
    sys.exit(print("occupied (31.4s)" if MODE == "occupied" else "ok"))
if MODE == "stuck":
    sys.exit("error: Timed out during operation: cannot acquire state change lock (held by monitor=x)")
if MODE == "silent":
    time.sleep(600)
command = next(word for word in sys.argv if word.startswith("--cmd="))[6:]
with socket.socket(socket.AF_UNIX) as s:
    s.connect(MONITOR)
    stream = s.makefile("rwb")
    stream.readline()
    for each in ('{{"execute": "qmp_capabilities"}}', command):
        stream.write(each.encode() + b"\\n")
        stream.flush()
        while "event" in (reply := json.loads(stream.readline())):
            pass
print(json.dumps(reply))
"""


@contextmanager
def capture_through_virsh(place: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Capture]:
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    with lab.qemu("7.2", *DISKS) as machine, other_client_of(machine.monitor):  # as libvirtd holds it
        virsh = place / "virsh"
        virsh.write_text(STAND_IN.format(settings=(mode, str(machine.control))))
        virsh.chmod(0o755)
        held = a_monitor(machine.monitor)
        with capture_of(place, machine.pid, held, manager="libvirt", name="web1") as capture:
            yield capture


@pytest.mark.live
def test_a_libvirt_domain_is_asked_through_virsh_stand_in(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.need_root()
    with capture_through_virsh(short, "ok", monkeypatch) as capture:
        capture.witness()
        assert isinstance(capture.query_status(seconds=30), Collected)
        assert isinstance(capture.query_block(seconds=30), Collected)
        greeting = capture.of(questions.GREETING)
        assert greeting.outcome == "greeted"
        assert "tainted (custom-monitor)" in greeting.why
        assert capture.of(questions.CAPABILITIES).outcome == "skipped"
        assert capture.of("query-status").answer["running"] is True
        assert capture.of("query-blockstats", names.QUERY_BLOCK).outcome == "answered"


@pytest.mark.live
@pytest.mark.parametrize(
    ("mode", "outcome"),
    [
        ("occupied", Skipped("the monitor is held by libvirtd (occupied (31.4s))")),
        (
            "stuck",
            Skipped(
                "query-status: virsh: error: Timed out during operation: "
                "cannot acquire state change lock (held by monitor=x)"
            ),
        ),
        ("silent", TimedOut("query-status: no answer in 1.0 s")),
    ],
)
def test_a_stuck_libvirtd_is_told_and_not_waited_for_with_virsh_stand_in(
    short: Path, monkeypatch: pytest.MonkeyPatch, mode: str, outcome: Outcome
) -> None:
    lab.need_root()
    impatient(monkeypatch, 1.0)
    with capture_through_virsh(short, mode, monkeypatch) as capture:
        assert capture.query_status() == outcome
        assert isinstance(capture.query_block(), Skipped)
