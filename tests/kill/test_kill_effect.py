"""Every verdict says whether a kill helps, and a kill that is proven to be needless is not done by a habit."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from autopsy.bundle import layout
from autopsy.diagnose import kill_effect
from autopsy.diagnose.catalogue import SIGNATURES
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.frames.catalogue import FROM_FRAMES
from autopsy.diagnose.verdict import UNKNOWN, diagnose
from autopsy.drill.scenarios import wedged
from autopsy.errors import ExitCode
from autopsy.facts.gather import gather_facts
from autopsy.kill.permission import Insistence, cautions, licence
from support import lab
from support.built import cases, families
from support.built import evidence as e

SECONDS = 90
OPENS = "257 0xffffff9c 0x7f0000001000 0x80002 0x0 0x0 0x0 0x7f0000000000 0x7f0000000000"


def test_every_signature_says_whether_a_kill_helps() -> None:
    assert set(kill_effect.BY_SIGNATURE) == {*(signature.id for signature in (*SIGNATURES, *FROM_FRAMES)), UNKNOWN}


def told(case: e.Case) -> Diagnosis:
    return diagnose(gather_facts(case.bundle()))


def test_a_deadlock_of_the_process_is_ended_by_a_kill() -> None:
    assert told(cases.deadlock()).kill == "helps"


def test_a_thread_that_no_signal_reaches_makes_a_kill_futile_whatever_else_is_wrong() -> None:
    found = told(families.in_kernel("percpu_rwsem_wait", "__sb_start_write", "ext4_file_write_iter"))
    assert found.kill == "futile"
    assert "which no signal reaches" in found.kill_why


def test_a_wait_that_a_fatal_signal_ends_is_not_called_futile() -> None:
    found = told(families.in_kernel("rpc_wait_bit_killable", "nfs_wait_on_request"))
    assert found.signature == "host-nfs-wait"
    assert found.kill == "unknown"


def test_a_wait_for_the_automounter_is_one_that_a_fatal_signal_ends() -> None:
    case = families.parked_in(*e.WORKERS)
    case.thread(e.PID + 80, "worker", state="D", syscall=OPENS, stack=("autofs_wait", "autofs_mount_wait"))
    assert not kill_effect.out_of_reach(gather_facts(case.bundle()))
    case.tasks[-1].stack = ("ovl_write_iter", "vfs_write")
    assert kill_effect.out_of_reach(gather_facts(case.bundle()))


def test_whether_a_server_of_another_host_comes_back_is_not_known() -> None:
    case = families.parked_in(*e.YIELD, "iscsi_co_wait_for_task", "", "blk_co_pwritev", node="iscsi")
    assert told(case).kill == "unknown"


def test_a_kill_cures_no_error_that_comes_back_at_once() -> None:
    case = cases.healthy_idle()
    for step, failed in ((layout.QUERY_STATUS, 0), (layout.SECOND_EXPOSURE, 40)):
        for exchange in case.exchanges[step]:
            if exchange.question == "query-blockstats":
                exchange.answer[0]["stats"]["failed_wr_operations"] = failed
    found = told(case)
    assert (found.signature, found.kill) == ("requests-fail", "unknown")


NEEDLESS = "the kill is needless"


def test_a_needless_kill_is_refused_with_its_cure_and_the_command_line_that_insists() -> None:
    found = told(cases.stopped())
    assert (found.kill, found.confidence) == ("needless", "proven")
    insisting = "autopsy capture --even-if-needless pid:1 --then-kill"
    refusal = licence(found, (), (), Insistence(command=insisting))
    assert refusal is not None
    assert refusal.exit_code == ExitCode.NOT_STORED
    assert NEEDLESS in refusal.words
    assert insisting in refusal.words
    assert licence(found, (), (), Insistence(even_if_needless=True)) is None


def test_a_needless_kill_that_is_less_than_proven_is_done_and_the_cure_said_first() -> None:
    found = msgspec.structs.replace(told(cases.stopped()), confidence="likely")
    assert licence(found, (), (), Insistence()) is None
    (caution,) = cautions(found)
    assert caution.startswith("a kill is needless")


def test_a_guess_is_killed_only_with_the_words_that_it_is_one() -> None:
    for found in (
        None,
        told(e.Case()),
        msgspec.structs.replace(told(cases.deadlock()), confidence="possible"),
    ):
        assert licence(found, (), (), Insistence()) is None
        assert any("not known whether a kill helps" in words for words in cautions(found))


def test_a_kill_that_helps_needs_no_caution() -> None:
    assert cautions(told(cases.deadlock())) == ()


def capture(pid: int, out: Path, *words: str) -> tuple[int, Any, str]:
    command = [sys.executable, "-m", "autopsy", "capture", f"pid:{pid}", "--fast", "--json", "--out", str(out), *words]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=SECONDS, check=False, stdin=subprocess.DEVNULL
    )
    return done.returncode, json.loads(done.stdout), done.stderr


@pytest.mark.live
@pytest.mark.parametrize("scenario", ["throttle", "stopped", "nbd-silent", "paused"])
def test_a_vm_that_goes_on_without_a_kill_is_left_alive(scenario: str, tmp_path: Path) -> None:
    with wedged(scenario) as it:
        code, answer, _ = capture(it.pid, tmp_path, "--then-kill")
        assert code == ExitCode.NOT_STORED
        assert answer["verdict"]["kill"] == "needless"
        assert not answer["kill"]["done"]
        assert Path(f"/proc/{it.pid}").exists()
        insisting = next(part for part in answer["kill"]["how"].split("`") if "--even-if-needless" in part)
        assert shlex.split(insisting)[:2] == ["autopsy", "capture"]
        code, answer, _ = capture(it.pid, tmp_path, "--then-kill", "--even-if-needless")
        assert code == ExitCode.DONE
        assert answer["kill"]["done"]


@pytest.mark.live
def test_a_futile_kill_is_told_as_futile_before_it_is_tried(tmp_path: Path) -> None:
    lab.need_root()
    with wedged("frozen-fs") as it:
        code, answer, story = capture(it.pid, tmp_path, "--then-kill", "--dry-run")
        assert code == ExitCode.DONE
        assert answer["verdict"]["kill"] == "futile"
        assert "a kill is futile" in answer["kill"]["how"]
        code, answer, story = capture(it.pid, tmp_path, "--then-kill")
        assert code == ExitCode.STILL_THERE
        assert "a kill is futile" in story


@pytest.mark.live
def test_a_start_that_nobody_can_do_is_refused_before_the_kill(tmp_path: Path) -> None:
    with wedged("healthy") as it:
        code, answer, _ = capture(it.pid, tmp_path, "--then-kill", "--then-start", "--even-if-healthy")
        assert code == ExitCode.NOT_STORED
        assert "nobody could start it again" in answer["kill"]["how"]
        assert Path(f"/proc/{it.pid}").exists()
