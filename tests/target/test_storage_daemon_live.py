"""A storage daemon is a target of its own kind: its exports are told, their clients are its guests, it has no guest."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from autopsy.bundle import layout
from autopsy.bundle.archive import members
from support import lab
from support.builds import version
from support.verdicts import Verdict, captured
from support.wedged import daemons
from support.wedged.wedges import Stuck

pytestmark = [pytest.mark.live, pytest.mark.timeout(180)]

LABELS = ("7.2", "10.0.2", "11")


@dataclass(frozen=True, slots=True)
class Trial:
    """`where` and `signature` are the verdict's."""

    name: str
    where: str
    signature: str
    set_up: Callable[[lab.Build], AbstractContextManager[Stuck]]
    labels: tuple[str, ...] = LABELS


STUCK = (
    Trial("nbd, over a frozen file system", "host", "host-fs-frozen", daemons.frozen),
    Trial("nbd, throttled", "throttle", "throttle-timer-wait", daemons.throttled),
    Trial(
        "vhost-user-blk, throttled", "throttle", "throttle-timer-wait", partial(daemons.vhost_user, slow=True), ("11",)
    ),
    Trial(
        "nbd, over a frozen file system, without a monitor",
        "host",
        "host-fs-frozen",
        partial(daemons.frozen, monitor=False),
        ("7.2",),
    ),
    Trial("not started", "vm-state", "vm-awaits-client", daemons.awaiting_its_monitor, ("10.0.2",)),
)
WELL = (
    Trial("nbd, idle", "none", "healthy", daemons.serving),
    Trial("nbd, busy", "none", "healthy", partial(daemons.serving, busy=True), ("11",)),
    Trial("nbd, without a monitor", "none", "healthy", partial(daemons.serving, monitor=False), ("10.0.2",)),
    Trial("vhost-user-blk, busy", "none", "healthy", daemons.vhost_user, ("7.2",)),
)


def each(trials: tuple[Trial, ...]) -> list[object]:
    return [
        pytest.param(trial, label, id=f"{trial.name}, {label}".replace(" ", "-"))
        for trial in trials
        for label in trial.labels
    ]


def outcomes(verdict: Verdict) -> dict[str, str]:
    """Return what became of each question, by its name."""
    asked = next(
        b"".join(member.parts())
        for member in members(Path(verdict.answer["bundle"]))
        if member.name == layout.evidence(layout.QUERY_STATUS, layout.QMP)
    )
    lines = map(json.loads, asked.splitlines())
    return {line["question"]: f"{line['outcome']}: {line.get('why', '')}" for line in lines}


@pytest.mark.parametrize(("trial", "label"), each(STUCK))
def test_a_stuck_export_is_told_with_its_node(trial: Trial, label: str, tmp_path: Path) -> None:
    with trial.set_up(lab.build(label)) as it:
        verdict = captured(it.vm.pid, tmp_path)
        assert (verdict.where, verdict.signature) == (trial.where, trial.signature), verdict
        assert all(name in f"{verdict.objects} {verdict!r}" for name in it.names), verdict
        assert "export1" not in verdict.objects, verdict
        assert "storage daemon" in verdict.ruled_out["guest-spins"]


@pytest.mark.parametrize(("trial", "label"), each(WELL))
def test_a_storage_daemon_that_does_its_work_is_healthy(trial: Trial, label: str, tmp_path: Path) -> None:
    with trial.set_up(lab.build(label)) as it:
        verdict = captured(it.vm.pid, tmp_path)
        assert (verdict.where, verdict.signature) == ("none", "healthy"), verdict
        # Nothing counts the requests of an export that have failed.
        assert verdict.confidence == "likely", verdict


@pytest.mark.parametrize("label", LABELS)
def test_it_is_asked_what_it_knows_and_the_rest_is_skipped(label: str, tmp_path: Path) -> None:
    with daemons.serving(lab.build(label)) as it:
        told = outcomes(captured(it.vm.pid, tmp_path))
    for question in ("query-commands", "query-version", "query-block-exports", "query-jobs"):
        assert told[question].startswith("answered"), told
    for question in ("query-status", "query-cpus-fast", "query-migrate"):
        assert told[question] == "skipped: this QEMU does not know it", told


def test_ps_shows_it_as_a_storage_daemon() -> None:
    with daemons.serving(lab.build("7.2")) as it:
        words = [sys.executable, "-m", "autopsy", "ps"]
        table = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        rows = json.loads(subprocess.run([*words, "--json"], capture_output=True, text=True, check=True).stdout)
    (row,) = (row for row in rows if row["pid"] == it.vm.pid)
    assert row["program"] == "qemu-storage-daemon"
    assert row["qemu_version"].startswith(version(lab.build("7.2")))
    assert [monitor["address"] for monitor in row["monitors"]] == [str(it.vm.monitor)]
    (line,) = (line for line in table.splitlines() if str(it.vm.pid) in line.split())
    assert "(storage daemon)" in line


def then_kill(pid: int, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    words = ["capture", f"pid:{pid}", "--fast", "--json", "--then-kill", *more, "--out", str(out)]
    return subprocess.run([sys.executable, "-m", "autopsy", *words], capture_output=True, text=True, check=False)


def test_a_stuck_one_is_killed_and_a_healthy_one_is_not(tmp_path: Path) -> None:
    with daemons.throttled(lab.build("7.2"), "bps-total") as it:
        done = then_kill(it.vm.pid, tmp_path / "needless")
        assert done.returncode == 5, done.stderr  # its own limit can be taken away
        done = then_kill(it.vm.pid, tmp_path / "stuck", "--even-if-needless")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["kill"]["done"]
        lab.until("it is gone", lambda: not Path(f"/proc/{it.vm.pid}/exe").exists())
    with daemons.serving(lab.build("7.2")) as it:
        done = then_kill(it.vm.pid, tmp_path / "well")
        assert done.returncode == 5, done.stderr
        assert Path(f"/proc/{it.vm.pid}/exe").exists()
