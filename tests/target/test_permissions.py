"""What works without root, what does not, and what is said of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from autopsy.bundle import layout
from autopsy.drill.machine import Machine
from autopsy.errors import ExitCode, NotPermitted
from autopsy.linux.child import in_child
from autopsy.target import permissions, target
from autopsy.target.permissions import Guards, explain, guards_of, lockdown
from support import lab

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534
READING = ("sys_ptrace", "dac_read_search")


@contextmanager
def vm_and_place() -> Iterator[tuple[Machine, Path]]:
    """Run a QEMU of root's, beside a folder that nobody may write to."""
    lab.need_root()
    with lab.qemu("7.2") as vm, lab.folder() as place:
        place.chmod(0o755)
        out = place / "out"
        out.mkdir()
        os.chown(out, NOBODY, NOBODY)
        yield vm, out


def as_nobody(capabilities: tuple[str, ...], out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run autopsy as nobody, with these capabilities alone."""
    given = ",".join(f"+{each}" for each in capabilities)
    become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return subprocess.run(
        [*become, f"--inh-caps={given}", f"--ambient-caps={given}", sys.executable, "-m", "autopsy", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=out,
        env={**os.environ, "TMPDIR": str(out), "XDG_STATE_HOME": str(out), "PYTHONPATH": str(ROOT)},
    )


def outcomes(done: subprocess.CompletedProcess[str]) -> dict[str, tuple[str, str]]:
    told: Any = json.loads(done.stdout)
    return {each["name"]: (each["outcome"], each["why"]) for each in told["steps"]}


@pytest.mark.live
def test_without_privilege_the_answer_is_exit_4_and_how_to_get_it() -> None:
    with vm_and_place() as (vm, _):

        def look() -> bytes:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            try:
                target.find_target(f"pid:{vm.pid}")
            except NotPermitted as error:
                return f"{error.exit_code:d} {error.cause}; {error.remedy}".encode()
            return b"found"

        said = in_child(look, 20).decode()
        assert said.startswith(
            f"{ExitCode.NOT_PERMITTED:d} the kernel does not let us look into process {vm.pid}; run as"
        )
        assert "CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH" in said


@pytest.mark.live
def test_two_capabilities_take_all_but_kernel_stacks_the_kernels_log_and_the_monitor() -> None:
    with vm_and_place() as (vm, out):
        done = as_nobody(
            READING, out, "capture", f"pid:{vm.pid}", "--fast", "--json", "--then-kill", "--even-if-healthy"
        )
        assert done.returncode == ExitCode.NOT_PERMITTED, done.stderr
        assert "not killed" in done.stderr
        assert vm.process.alive()
        assert vm.qmp("query-status")["status"] == "running"
        told = outcomes(done)
        for step in (layout.WITNESS, layout.FREEZE, layout.GDB_THREADS, layout.PROC_FDS, layout.PROC_AIO, layout.HOST):
            assert told[step][0] == "Collected", told[step]
        assert "kernel stacks: EACCES" in told[layout.WITNESS][1]
        assert told[layout.QUERY_STATUS][0] == "Failed"
        assert "CAP_DAC_OVERRIDE" in told[layout.QUERY_STATUS][1]
        assert told[layout.QUERY_BLOCK][0] == "Skipped"
        assert "/dev/kmsg: EPERM" in told[layout.HOST][1]


@pytest.mark.live
def test_the_right_to_kill_is_one_capability_more() -> None:
    with vm_and_place() as (vm, out):
        words = ("capture", f"pid:{vm.pid}", "--fast", "--json", "--then-kill", "--even-if-healthy")
        done = as_nobody((*READING, "kill", "dac_override"), out, *words)
        assert done.returncode == 0, done.stderr
        assert outcomes(done)[layout.QUERY_STATUS][0] == "Collected"
        assert vm.process.child.wait(10) == -9


PRIVILEGED = Guards(root=True, may_trace=True, same_users=True)


@pytest.mark.parametrize(
    ("guards", "reason", "remedy"),
    [
        (Guards(root=True, may_trace=True, same_users=True, yama="3"), "ptrace_scope=3", "until the host restarts"),
        (Guards(root=False, may_trace=False, same_users=True, yama="1"), "", "run as root"),
        (Guards(root=True, may_trace=False, same_users=True), "root without CAP_SYS_PTRACE", "container"),
        (
            Guards(
                root=True,
                may_trace=True,
                same_users=True,
                selinux=True,
                ours="staff_u:staff_r:staff_t:s0",
                theirs="system_u:system_r:svirt_t:s0:c1,c2",
            ),
            "staff_u:staff_r:staff_t:s0 may not trace system_u:system_r:svirt_t:s0:c1,c2",
            "ausearch",
        ),
        (
            Guards(
                root=True,
                may_trace=True,
                same_users=True,
                ours="docker-default (enforce)",
                theirs="libvirt-5e (enforce)",
            ),
            "AppArmor confines us by docker-default (enforce)",
            "peer=libvirt-5e,",
        ),
        (Guards(root=True, may_trace=True, same_users=False, ours="unconfined"), "user namespace", "on the host"),
        (PRIVILEGED, "though we may trace", "seccomp"),
    ],
)
def test_each_guard_is_known_by_its_sign(guards: Guards, reason: str, remedy: str) -> None:
    told = explain(guards)
    assert reason in told[0]
    assert remedy in told[1]


def test_the_signs_are_read_where_the_kernel_shows_them(tmp_path: Path) -> None:
    for path, text in {
        "proc/self/status": "Name:\tx\nCapEff:\t0000000000080000\n",
        "proc/sys/kernel/yama/ptrace_scope": "2\n",
        "proc/self/attr/current": "docker-default (enforce)\n",
        "proc/7/attr/current": "system_u:object_r:\x1b[2Jx\0",
        "sys/fs/selinux/enforce": "1",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    found = guards_of(7, tmp_path)
    assert (found.may_trace, found.yama, found.ours, found.selinux) == (True, "2", "docker-default (enforce)", True)
    assert found.theirs == "system_u:object_r:?[2Jx"
    nothing = guards_of(7, tmp_path / "none")
    assert (nothing.may_trace, nothing.yama, nothing.ours, nothing.selinux) == (False, "", "", False)


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("none [integrity] confidentiality", "locked down (integrity): debugfs is closed"),
        ("none integrity [confidentiality]", "locked down (confidentiality): debugfs is closed"),
        ("[none] integrity confidentiality", ""),
        (None, ""),
    ],
)
def test_a_locked_down_kernel_is_known_by_its_own_word(tmp_path: Path, file: str | None, told: str) -> None:
    if file is not None:
        (tmp_path / "sys/kernel/security").mkdir(parents=True)
        (tmp_path / "sys/kernel/security/lockdown").write_text(f"{file}\n")
    words = lockdown(tmp_path)
    assert told in words
    assert bool(words) is bool(told)


def test_the_remedy_is_the_whole_command_as_root_can_run_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin/autopsy"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr(permissions.sys, "argv", [str(program), "capture", "web 1", "--then-kill"])
    assert permissions.as_root() == f"sudo {program} capture 'web 1' --then-kill"
    monkeypatch.setattr(permissions.sys, "argv", ["/nowhere/__main__.py", "ps"])
    assert permissions.as_root() == f"sudo {sys.executable} -m autopsy ps"
