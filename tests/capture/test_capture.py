"""The whole command on real QEMUs: name in, verdict out, and every bad end in its own words."""

from __future__ import annotations

import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from autopsy.bundle import layout
from autopsy.bundle.reader import open_bundle
from autopsy.bundle.verify import verify
from autopsy.capture.plan import PLAN
from autopsy.drill.scenarios import SCENARIOS, Scenario, wedged
from autopsy.examine.gdb import without_gdb
from support import lab
from support.copies import copied
from tests.examine.gdb import stand_ins

pytestmark = pytest.mark.live

SECONDS = 90


@dataclass(frozen=True, slots=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def answer(self) -> Any:
        return json.loads(self.out)

    def outcome(self, step: str) -> tuple[str, str]:
        return next((one["outcome"], one["why"]) for one in self.answer["steps"] if one["name"] == step)


def autopsy(*words: str | Path, **more: Any) -> Done:
    return started([sys.executable, "-m", "autopsy", *map(str, words)], **more)


def started(command: list[str], **more: Any) -> Done:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        stdin=subprocess.DEVNULL,
        **more,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def capture(pid: int, out: Path, *words: str, **more: Any) -> Done:
    return autopsy("capture", f"pid:{pid}", "--fast", "--json", "--out", out, *words, **more)


@pytest.fixture(scope="module")
def quiet() -> Iterator[lab.Machine]:
    with lab.qemu("7.2") as machine:
        yield machine


def unharmed(pid: int) -> None:
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
        assert fields["State"][0] not in "tT", fields
        assert fields["TracerPid"] == "0"
        assert int(fields["SigPnd"], 16) == int(fields["ShdPnd"], 16) == 0


def test_the_steps_are_those_of_the_design_in_their_order() -> None:
    assert tuple(step.name for step in PLAN) == layout.STEPS


def test_a_healthy_vm_is_captured_whole_and_left_unharmed(quiet: lab.Machine, tmp_path: Path) -> None:
    done = capture(quiet.pid, tmp_path)
    assert done.code == 0, done.err
    answer = done.answer
    assert set(answer) >= {"bundle", "report", "sha256", "target", "steps", "stop_ms", "verdict", "kill"}
    assert set(answer["target"]) == {"pid", "name", "manager", "qemu_version", "build_id"}
    assert [step["name"] for step in answer["steps"]] == list(layout.STEPS)
    assert {step["outcome"] for step in answer["steps"]} == {"Collected"}, answer["steps"]
    assert set(answer["steps"][0]) == {"name", "outcome", "why", "ms"}
    assert answer["verdict"]["where"] == "none"
    assert answer["kill"] == {"asked": False, "done": False, "how": "not asked for"}
    assert answer["stop_ms"] >= 0  # none at all where every thread stands still by itself
    bundle = Path(answer["bundle"])
    assert verify(bundle).sha256 == answer["sha256"]
    assert bundle.stat().st_mode & 0o777 == Path(answer["report"]).stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([bundle.name, Path(answer["report"]).name])
    held = set(open_bundle(bundle).names())
    assert {"manifest.json", "README.txt", "core", "report.html", "diagnosis.json"} <= held
    assert not any("environ" in name for name in held)
    unharmed(quiet.pid)
    assert quiet.qmp("query-status")["status"] == "running"


def test_piped_the_story_is_on_stderr_and_the_result_on_stdout(quiet: lab.Machine, tmp_path: Path) -> None:
    done = autopsy("capture", f"pid:{quiet.pid}", "--fast", "--out", tmp_path)
    assert done.code == 0
    assert [line.split()[0] for line in done.out.splitlines()] == ["HEALTHY", "VM", "report", "bundle"]
    assert [line.split()[0] for line in done.err.splitlines()][: len(layout.STEPS)] == list(layout.STEPS)
    assert "\x1b" not in done.out + done.err


def test_a_stored_bundle_says_the_same_again(quiet: lab.Machine, tmp_path: Path) -> None:
    answer = capture(quiet.pid, tmp_path).answer
    again = autopsy("analyze", answer["bundle"], "--json")
    assert again.code == 0
    assert again.answer == answer["verdict"]
    assert "<html" in autopsy("report", answer["bundle"]).out
    assert autopsy("verify", answer["bundle"]).code == 0


# Captured also where each one's advice is tried (tests/diagnose/advice/test_advice_live.py).
CURED = ("throttle-node", "nbd-silent", "drain", "frozen-fs", "fuse-stuck", "stopped", "paused")


@pytest.mark.parametrize(
    "scenario",
    [pytest.param(each, id=each.name, marks=pytest.mark.soak if each.name in CURED else ()) for each in SCENARIOS],
)
def test_every_drill_ends_with_its_verdict(scenario: Scenario, tmp_path: Path) -> None:
    if "root" in scenario.needs:
        lab.need_root()
    with wedged(scenario.name) as it:
        done = capture(it.pid, tmp_path)
        assert done.code == 0, done.err
        verdict = done.answer["verdict"]
        assert verdict["where"] == scenario.where, (verdict, done.answer["steps"])
        assert verdict["signature"]
        assert verdict["cites"] or scenario.where == "none"
        if scenario.name != "stopped":
            unharmed(it.pid)


def test_then_kill_kills_and_says_how(tmp_path: Path) -> None:
    with wedged("nbd-silent") as it:
        done = capture(it.pid, tmp_path, "--then-kill", "--even-if-needless")
        assert done.code == 0, done.err
        assert done.answer["kill"]["asked"]
        assert done.answer["kill"]["done"]
        state = Path(f"/proc/{it.pid}/stat")
        assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"
        note = json.loads(Path(done.answer["bundle"] + ".kill.json").read_text())
        assert note["gone"]
        assert note["sha256"] == done.answer["sha256"]
        assert "SIGKILL" in Path(done.answer["report"]).read_text()


def test_a_healthy_vm_is_not_killed_by_habit(quiet: lab.Machine, tmp_path: Path) -> None:
    done = capture(quiet.pid, tmp_path, "--then-kill")
    assert done.code == 5
    assert not done.answer["kill"]["done"]
    assert "--even-if-healthy" in done.answer["kill"]["how"]
    assert quiet.qmp("query-status")["status"] == "running"


def test_a_required_step_that_is_missing_forbids_the_kill(tmp_path: Path) -> None:
    with wedged("stopped") as it:
        done = capture(it.pid, tmp_path, "--then-kill", "--require", "qmp.query-block")
        assert done.code == 5
        assert "--require qmp.query-block" in done.answer["kill"]["how"]
        assert Path(f"/proc/{it.pid}").exists()


def test_a_process_that_cannot_die_is_named(tmp_path: Path) -> None:
    lab.need_root()
    with wedged("frozen-fs") as it:
        done = capture(it.pid, tmp_path, "--then-kill")
        assert done.code == 6, done.err
        assert "percpu_rwsem_wait" in done.answer["kill"]["how"]


def test_without_gdb_the_threads_are_unwound_all_the_same_and_marked_so(quiet: lab.Machine, tmp_path: Path) -> None:
    elsewhere = "from autopsy.linux import environment; environment.PATH = '/nonexistent'; "
    program = f"{elsewhere}from autopsy.cli.app import main; main()"
    words = ("capture", f"pid:{quiet.pid}", "--fast", "--json", "--out", str(tmp_path))
    done = started([sys.executable, "-c", program, *words])
    assert done.code == 0, done.err
    outcome, why = done.outcome("gdb.threads")
    assert outcome == "Collected"
    assert without_gdb.NOTE in why
    assert {one["outcome"] for one in done.answer["steps"]} == {"Collected"}
    bundle = open_bundle(Path(done.answer["bundle"]))
    assert bundle.read(layout.evidence(layout.GDB_THREADS, layout.COROUTINES))
    backtrace = bundle.read(layout.evidence(layout.GDB_THREADS, layout.BACKTRACE)).decode()
    assert backtrace.count(without_gdb.MARK) == backtrace.count("Thread ")
    assert "#3 " in backtrace
    assert done.answer["verdict"]["where"] == "none"


@pytest.mark.parametrize("stand_in", ["ENDS", "CRASHES_IN_THE_MIDDLE", "HANGS"])
def test_no_verdict_changes_where_gdb_ends_by_itself(stand_in: str, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="at-") as place, wedged("drain") as it:
        os.chmod(place, 0o755)  # noqa: S103 - for the sandbox's user
        folder = stand_ins.lay(Path(place, "bin"), getattr(stand_ins, stand_in))
        elsewhere = f"from autopsy.linux import environment; environment.PATH = '{folder}:' + environment.PATH; "
        inside = "from pathlib import Path; from autopsy.linux.confine import sandbox; "
        inside += f"sandbox.SYSTEM += (Path({str(folder)!r}),); "
        program = f"{elsewhere}{inside}from autopsy.cli.app import main; main()"
        words = ("capture", f"pid:{it.pid}", "--fast", "--json", "--out", str(tmp_path))
        done = started([sys.executable, "-c", program, *words])
        with_gdb = capture(it.pid, tmp_path)
        unharmed(it.pid)
    assert done.code == 0, done.err
    outcome, why = done.outcome(layout.GDB_THREADS)
    assert outcome == "Collected"
    assert without_gdb.NOTE in why
    assert without_gdb.NOTE not in with_gdb.outcome(layout.GDB_THREADS)[1]
    for part in ("where", "signature", "confidence", "objects"):
        assert done.answer["verdict"][part] == with_gdb.answer["verdict"][part]
    assert done.answer["verdict"]["where"] == "peer"
    held = open_bundle(Path(done.answer["bundle"]))
    backtrace = held.read(layout.evidence(layout.GDB_THREADS, layout.BACKTRACE)).decode()
    assert without_gdb.MARK in backtrace
    assert backtrace.count("Thread ") == with_gdb_threads(with_gdb)


def with_gdb_threads(done: Done) -> int:
    held = open_bundle(Path(done.answer["bundle"]))
    return held.read(layout.evidence(layout.GDB_THREADS, layout.BACKTRACE)).decode().count("Thread ")


def test_without_permission_it_says_how_to_get_it(quiet: lab.Machine) -> None:
    lab.need_root()
    nobody = pwd.getpwnam("nobody")
    as_nobody = f"""
import contextlib, importlib, os, pkgutil, sys
import autopsy.cli.app
# this Python, and this checkout, may be closed to other users
names = [module.name for place in ("cli", "commands", "store", "target", "linux")
         for module in pkgutil.walk_packages([autopsy.__path__[0] + "/" + place], f"autopsy.{{place}}.")]
for name in ["typer._click.decorators", *names]:  # newer ones import theirs when they parse
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
os.setgroups([])
os.setgid({nobody.pw_gid})
os.setuid({nobody.pw_uid})
sys.argv = ["autopsy", "capture", "pid:{quiet.pid}", "--out", "/tmp"]
autopsy.cli.app.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", as_nobody], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 4, done.stderr
    assert "root" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_vm_that_dies_in_mid_capture_loses_nothing_that_was_collected(tmp_path: Path) -> None:
    with lab.qemu("7.2") as machine:

        def end_it() -> None:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline and not list(tmp_path.glob("*.partial/core")):
                time.sleep(0.005)
            os.kill(machine.pid, signal.SIGKILL)

        killer = threading.Thread(target=end_it)
        killer.start()
        done = capture(machine.pid, tmp_path)
        killer.join()
        assert done.code == 9, done.err
        assert done.outcome("witness")[0] == "Collected"
        assert done.outcome("freeze")[0] == "Collected"
        assert verify(Path(done.answer["bundle"])).files > 10


def test_a_socket_that_is_another_program_s_is_no_vm(tmp_path: Path, short: Path) -> None:
    path = short / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        done = autopsy("capture", f"qmp:{path}", "--out", tmp_path)
    assert done.code == 3
    assert "no QEMU" in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written_is_told_and_another_taken(quiet: lab.Machine, tmp_path: Path) -> None:
    done = capture(quiet.pid, Path("/proc/nowhere"), "--out", str(tmp_path))
    assert done.code == 0, done.err
    assert Path(done.answer["bundle"]).parent == tmp_path
    assert "/proc/nowhere" in done.err


def test_a_full_directory_costs_no_evidence(quiet: lab.Machine, tmp_path: Path) -> None:
    lab.need_root()
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], check=True)
    try:
        done = capture(quiet.pid, small, "--out", str(tmp_path))
        assert done.code == 0, done.err
        assert Path(done.answer["bundle"]).parent == tmp_path
        assert "has room for" in done.err
    finally:
        subprocess.run(["umount", small], check=True)


def test_no_such_vm_is_exit_3() -> None:
    done = autopsy("capture", "99999999")
    assert done.code == 3
    assert "autopsy ps" in done.err


def test_a_process_that_is_no_qemu_is_refused_with_what_it_is() -> None:
    done = autopsy("capture", f"pid:{os.getpid()}")
    assert done.code == 3
    assert "python" in done.err


def test_the_binary_of_a_deleted_qemu_is_kept_and_the_core_opens_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = copied(lab.build("7.2"), tmp_path, monkeypatch)
    with lab.qemu(build) as machine:
        build.binary.unlink()
        done = capture(machine.pid, tmp_path)
        assert done.code == 0, done.err
        assert done.outcome("gdb.threads")[0] == "Collected"
        assert layout.BINARY in open_bundle(Path(done.answer["bundle"])).names()
    again = autopsy("examine", done.answer["bundle"])
    assert again.code == 0, again.err
    assert (
        "main_loop_wait"
        in open_bundle(next(tmp_path.glob("*-examined.tar.zst")))
        .read(layout.evidence(layout.GDB_THREADS, layout.BACKTRACE))
        .decode()
    )
