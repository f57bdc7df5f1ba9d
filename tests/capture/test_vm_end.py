"""A VM that ends while it is captured: told first, with what it ended after, and never as a QEMU that is stuck."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from autopsy.bundle import layout
from autopsy.bundle.reader import open_bundle
from autopsy.bundle.records import QmpExchange
from autopsy.bundle.verify import verify
from autopsy.bundle.vm_end import VmEnd, in_words
from autopsy.capture import endwatch
from autopsy.capture.endwatch import EndWatch
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from support import lab, looking
from support.surviving import (
    Capture,
    _every_capture_ends,  # noqa: F401 - a fixture
    busy,
    capture,
    namespace,
)

pytestmark = pytest.mark.timeout(300)

SOURCE = Path(__file__).resolve().parent.parent / "support" / "aborting.c"
LIVING = (layout.PROC_STACKS, layout.PROC_FDS, layout.PROC_AIO, layout.SECOND_EXPOSURE)


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("built") / "qemu-system-x86_64"
    subprocess.run(["cc", "-O1", "-w", "-o", built, SOURCE], check=True, timeout=60)
    return built


def no_core() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def a_core() -> None:
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))


@contextmanager
def fake(binary: Path, question: str, how: str, *, cores: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """Run the process that ends at a question. Nobody waits for it before the end: it stays a zombie."""
    with lab.folder() as place:
        words = [binary, "-qmp", f"unix:{place}/qmp,server=on,wait=off", "-name", f"{question},{how}"]
        with open(place / "log", "wb") as log:
            process = subprocess.Popen(words, cwd=place, stderr=log, preexec_fn=a_core if cores else no_core)  # noqa: PLW1509 - it only sets a limit
        try:
            lab.until("it listens", (place / "qmp").exists)
            yield process
        finally:
            process.kill()
            process.wait()


def whole(done: Capture) -> Any:
    """Fail unless the capture tells of an end in every way that there is; return its answer."""
    answer = done.answer
    assert answer["vm"]["alive"] is False
    assert verify(done.bundle).files
    assert answer["verdict"]["where"] == "process"
    assert answer["verdict"]["signature"] == "vm-ended"
    assert answer["verdict"]["headline"].startswith("The VM ended while it was captured: ")
    title = Path(answer["report"]).read_text().partition("<h1>")[2].partition("</h1>")[0]
    assert "The VM ended while it was captured" in title
    assert "main-loop-blocked" not in {each["signature"] for each in answer["verdict"]["secondary"]}
    assert "monitor-unanswered" not in {each["signature"] for each in answer["verdict"]["secondary"]}
    assert answer["kill"]["done"] is False
    return answer


def reports(bundle: Path, form: str) -> str:
    words = [sys.executable, "-m", "autopsy", "report", bundle, "--format", form]
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout


def test_a_qemu_that_aborts_on_a_question_is_told_as_ended_after_it(binary: Path, tmp_path: Path) -> None:
    with fake(binary, "query-chardev", "before") as process:
        done = capture(process.pid, tmp_path, "--fast")
        assert done.end() == 9, done.story
    answer = whole(done)
    assert answer["vm"]["ended_after"] == "query-chardev"
    assert "killed by SIGABRT after query-chardev was asked" in answer["verdict"]["headline"]
    outcomes = {each["name"]: (each["outcome"], each["why"]) for each in answer["steps"]}
    assert outcomes[layout.FREEZE][0] == outcomes[layout.GDB_THREADS][0] == outcomes[layout.HOST][0] == "Collected"
    assert {outcomes[step] for step in LIVING} == {("Skipped", "the VM ended after query-chardev")}
    bundle = open_bundle(done.bundle)
    assert b"Assertion `obj' failed" in bundle.read(layout.evidence(layout.END, layout.VM_LOG))
    assert b"still there" in bundle.read(layout.evidence(layout.END, layout.LEFT))
    assert any("Assertion" in claim.text for claim in diagnose(gather_facts(bundle)).chain)


def test_every_form_of_the_report_says_so_in_its_first_line(binary: Path, tmp_path: Path) -> None:
    with fake(binary, "query-chardev", "before") as process:
        done = capture(process.pid, tmp_path, "--fast")
        assert done.end() == 9, done.story
    told = "The VM ended while it was captured"
    assert told in reports(done.bundle, "md").splitlines()[0]
    assert told in reports(done.bundle, "bug").partition("## Description of problem")[2].strip().splitlines()[0]
    assert json.loads(reports(done.bundle, "json"))["end"]["after"] == "query-chardev"
    words = [sys.executable, "-m", "autopsy", "analyze", done.bundle]
    analyzed = subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout
    assert told in analyzed.splitlines()[0]
    assert analyzed.startswith("ENDED    ")


def test_on_a_terminal_the_first_line_says_so(binary: Path, tmp_path: Path) -> None:
    with fake(binary, "query-chardev", "before") as process:
        words = [sys.executable, "-m", "autopsy", "capture", f"pid:{process.pid}", "--fast", "--out", tmp_path]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 9
    assert done.stdout.startswith("ended    QEMU was killed by SIGABRT after query-chardev was asked")


def test_a_death_within_a_second_of_an_answer_is_told_as_after_it_and_not_as_caused_by_it(
    binary: Path, tmp_path: Path
) -> None:
    with fake(binary, "query-chardev", "after") as process:
        done = capture(process.pid, tmp_path, "--fast")
        assert done.end() == 9, done.story
    answer = whole(done)
    assert "within a second after" in answer["verdict"]["headline"]
    assert answer["vm"]["ended_after"] not in layout.STEPS
    assert any(
        "an order in time, no cause" in line.text for line in diagnose(gather_facts(open_bundle(done.bundle))).chain
    )


def test_a_qemu_that_exits_with_status_0_is_told_so(binary: Path, tmp_path: Path) -> None:
    with fake(binary, "query-chardev", "exit") as process:
        done = capture(process.pid, tmp_path, "--fast")
        assert done.end() == 9, done.story
    assert "QEMU exited with status 0 after query-chardev" in whole(done)["verdict"]["headline"]


def test_a_core_that_the_kernel_wrote_is_told(binary: Path, tmp_path: Path) -> None:
    if Path("/proc/sys/kernel/core_pattern").read_text().startswith("|"):
        lab.missing("needs a kernel that writes cores itself")
    with fake(binary, "query-chardev", "before", cores=True) as process:
        done = capture(process.pid, tmp_path, "--fast")
        assert done.end() == 9, done.story
    assert "SIGABRT (its core was dumped)" in whole(done)["verdict"]["headline"]


def test_nothing_is_killed_or_started_where_the_vm_has_ended_by_itself(binary: Path, tmp_path: Path) -> None:
    with fake(binary, "query-chardev", "before") as process:
        done = capture(process.pid, tmp_path, "--fast", "--then-kill", "--then-start")
        assert done.end() == 9, done.story
    answer = whole(done)
    assert answer["kill"]["asked"]
    assert answer["kill"]["how"].startswith("not killed: it ended by itself: QEMU was killed by SIGABRT")
    assert answer["start"]["asked"]
    assert not answer["start"]["done"]
    assert answer["start"]["how"].startswith("not started again")


def test_a_vm_that_we_kill_ourselves_is_not_told_as_ended_by_itself(binary: Path, tmp_path: Path) -> None:
    """The healthy twin: the same process, and no question that it dies of."""
    with fake(binary, "no-such-question", "before") as process:
        done = capture(process.pid, tmp_path, "--fast", "--then-kill", "--even-if-healthy")
        assert done.end() == 0, done.story
        assert process.wait(10) == -signal.SIGKILL
    assert done.answer["vm"] == {"alive": True, "ended_after": ""}
    assert done.answer["kill"]["done"]
    assert done.answer["verdict"]["signature"] != "vm-ended"
    assert open_bundle(done.bundle).manifest.end is None


@pytest.mark.live
@pytest.mark.parametrize(
    ("step", "number"),
    [
        (layout.FREEZE, signal.SIGKILL),
        (layout.QUERY_STATUS, signal.SIGABRT),
        (layout.GDB_THREADS, signal.SIGSEGV),
        (layout.SECOND_EXPOSURE, signal.SIGTERM),
    ],
)
def test_a_qemu_that_somebody_ends_in_the_middle_of_a_step_is_told_with_how(
    step: str, number: signal.Signals, tmp_path: Path
) -> None:
    with busy("ended") as machine, namespace() as memory:
        done = capture(machine.pid, tmp_path, "--gap", "8", "--budget", "40", within=memory)
        lab.until(f"{step} began", lambda: bool(list(memory.memory.glob(f"*.work/evidence/{step}"))), seconds=30)
        sent = time.monotonic()
        os.kill(machine.pid, number)
        assert done.end() == 9, done.story
        waited = time.monotonic() - sent
    answer = whole(done)
    how = "exited with status 0" if number is signal.SIGTERM else f"killed by {number.name}"
    assert how in answer["verdict"]["headline"]
    if step is layout.SECOND_EXPOSURE:
        assert waited < 8, "it waited for a VM that had ended"
        end = open_bundle(done.bundle).manifest.end
        assert end is not None
        assert end.step == step
        assert end.question or end.after == step  # a busy host comes late to this look, and then asks at once


def test_an_end_long_after_the_last_question_is_told_with_the_step(tmp_path: Path) -> None:
    with (
        looking.python("print('ready', flush=True); import time; time.sleep(300)") as pid,
        looking.scene(pid, tmp_path, layout.QUERY_STATUS) as at,
    ):
        watch = EndWatch(at.target)
        watch.began(layout.QUERY_STATUS)
        long_ago = QmpExchange(
            question="query-status",
            outcome="answered",
            asked_ns=time.monotonic_ns() - 3 * endwatch.SOON_NS,
            ms=1,
            deadline_ms=2000,
        )
        at.write(layout.QMP, msgspec.json.encode(long_ago) + b"\n")
        watch.began(layout.GDB_THREADS)
        assert watch.conclude(tmp_path) is None
        os.kill(pid, signal.SIGKILL)
        lab.until("it has ended", lambda: watch.conclude(tmp_path) is not None)
        end = watch.end
    assert end is not None
    assert (end.after, end.question, end.how, end.number) == (layout.GDB_THREADS, False, "signal", signal.SIGKILL)


def test_every_way_to_end_has_its_words() -> None:
    end = VmEnd(after="query-block", step=layout.QUERY_BLOCK, alive_ns=1, seen_ns=2, question=True)
    dumping = msgspec.structs.replace(end, how="dumping core")
    assert in_words(dumping) == (
        "QEMU was dying, and its core was being dumped, after query-block was asked, which it did not answer"
    )
    assert in_words(msgspec.structs.replace(end, how="signal", number=6, answered=True)) == (
        "QEMU was killed by SIGABRT within a second after query-block was answered"
    )
    assert in_words(msgspec.structs.replace(end, after="freeze", question=False)) == (
        "QEMU ended, the kernel did not tell us how, after the step freeze had begun"
    )
