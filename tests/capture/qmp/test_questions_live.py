"""No question that a capture can ask harms a QEMU, whatever its version, its disks and what is below them."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from autopsy.capture.qmp import commands as questions
from autopsy.capture.qmp import stability, unstable
from selection import LABELS
from support import fake_qmp, lab
from support.asking import impatient
from support.harmless import Trial, ask_everything
from support.wedged import many_disks

UNSTABLE = {unstable.GRAPH, unstable.VIRTIO, unstable.VIRTIO_STATUS, unstable.QUEUE_STATUS}
HARMED = "11.1.3"  # by x-query-virtio-status


@pytest.mark.live
@pytest.mark.every_qemu
@pytest.mark.parametrize(
    "build", [pytest.param(each, marks=[pytest.mark.soak] * (each == "10.0.2-debug")) for each in LABELS], indirect=True
)
def test_every_question_leaves_every_qemu_and_every_kind_of_disk_as_they_were(
    build: lab.Build, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stability, "LAST_UNMARKED", questions.Version())  # so that each is asked for its schema, too
    with many_disks.busy(build) as it:
        trial = ask_everything(short, it.vm.pid, it.vm.monitor, it.state)
        assert trial.harm == ()
        assert it.goes_on()
        assert it.errors() == 0
        known = {each["name"] for each in it.vm.qmp("query-commands")}
        harmful = {question for question, why in trial.withheld.items() if "aborted" in why}
        assert trial.answered >= (questions.STABLE | UNSTABLE) & known - harmful - after(harmful)
        asked = {each.arguments.get("path") for each in trial.asked if each.question == questions.QOM_GET}
        assert asked == {"/objects/group0"}


def after(harmful: set[str]) -> set[str]:
    """Return the questions that are not asked because another one is not."""
    return {unstable.QUEUE_STATUS} if unstable.VIRTIO_STATUS in harmful else set()


@pytest.mark.live
def test_the_question_that_aborted_a_qemu_would_turn_the_table_red(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stability, "HARMFUL", ())
    with lab.qemu("11", "-device", "virtio-rng-pci", "-device", "virtio-scsi-pci") as vm:
        version = vm.qmp("query-version")["qemu"]
        if "{major}.{minor}.{micro}".format(**version) != HARMED:
            pytest.skip(f"QEMU {HARMED} is the one that was aborted")
        trial = ask_everything(short, vm.pid, vm.monitor, lambda: vm.qmp("query-status"))
        assert trial.harm == ("it ended at x-query-virtio-status",)


DISK = {"name": "virtio-blk", "path": "/machine/peripheral/vd0/virtio-backend"}


def ask_fake(short: Path, script: fake_qmp.Script) -> Trial:
    with process_of(short / "qmp", script) as pid:
        lab.until("it listened", (short / "qmp").exists)
        return ask_everything(short, pid, short / "qmp", lambda: fake_qmp.ask(short / "qmp", "query-status"))


@contextmanager
def process_of(path: Path, script: fake_qmp.Script) -> Iterator[int]:
    """Serve a script in a process of its own, which the script may end."""
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGABRT, signal.SIG_DFL)
        with fake_qmp.server(path, script):
            time.sleep(60)
        os._exit(0)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def with_a_disk(question: str, happens: Any) -> fake_qmp.Script:
    """Return a polite script in which something happens at one question."""
    answers: dict[str, Any] = {
        questions.STATUS: {"status": "running"},
        questions.VERSION: {"qemu": {"major": 11, "minor": 1, "micro": 3}},
        unstable.VIRTIO: [DISK],
    }

    def script(client: fake_qmp.Client) -> None:
        client.greet()
        while True:
            asked = client.hear()
            if asked["execute"] == question:
                happens(client, answers)
            client.answer(asked, answers.get(asked["execute"], {}))

    return script


def test_a_fake_that_aborts_at_a_harmful_question_is_told_and_one_that_is_not_asked_it_lives(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aborting = with_a_disk(unstable.VIRTIO_STATUS, lambda *_: os.abort())
    assert ask_fake(short, aborting).harm == ()
    monkeypatch.setattr(stability, "HARMFUL", ())
    with lab.folder() as place:
        assert ask_fake(place, aborting).harm == (f"it ended at {unstable.VIRTIO_STATUS}",)


def test_a_question_that_pauses_the_vm_turns_the_table_red(short: Path) -> None:
    paused = {"status": "paused"}
    trial = ask_fake(short, with_a_disk(questions.BLOCK, lambda _, answers: answers.update({questions.STATUS: paused})))
    assert len(trial.harm) == 1


def test_a_question_that_is_not_answered_turns_the_table_red(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch)
    trial = ask_fake(short, with_a_disk(questions.BLOCK, lambda client, _: client.wait()))
    assert trial.harm[0] == f"{questions.BLOCK} was not answered"
