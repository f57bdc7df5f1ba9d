"""Has a systemd of its own run a capture as the watch does: in a mount namespace, `python own_systemd.py FOLDER PID`.

It is the real one in its user's mode: nothing here boots with one, and it insists on a folder of a system that does.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from autopsy.bundle.reader import open_bundle
from autopsy.store.entries import entries
from autopsy.watch.captures.unit import UnitStarter
from autopsy.watch.launch import CaptureLauncher

SYSTEMD = "/usr/lib/systemd/systemd"
UNIT = Path(__file__).resolve().parents[3] / "packaging/systemd/autopsy@.service"
PROGRAM = "/usr/bin/autopsy"
SECONDS = 90.0


Answer = TypeVar("Answer")
GROUPS = (Path("/sys/fs/cgroup/systemd"), Path("/sys/fs/cgroup"))  # of control groups version 1, and 2


@contextmanager
def _in_a_group_of_its_own() -> Iterator[None]:
    """Enter a control group: a systemd moves whoever is in the one that it begins in."""
    top = next(each for each in GROUPS if (each / "cgroup.procs").exists())
    group = top / f"autopsy-{secrets.token_hex(4)}"
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(os.getpid()))
        yield
    finally:
        (top / "cgroup.procs").write_text(str(os.getpid()))
        for folder, _, _ in os.walk(group, topdown=False):
            _until(partial(_removed, folder))


def _removed(folder: str) -> bool:
    try:
        os.rmdir(folder)
    except OSError:
        return False
    return True


def _pretend_to_have_booted_with_it() -> None:
    subprocess.run(["mount", "-t", "tmpfs", "none", "/run/systemd"], check=True)
    Path("/run/systemd/system").mkdir()


def main() -> None:
    """Capture a process by a unit, and by the same unit as a person does; print what came of it."""
    kept, pid = Path(sys.argv[1]), int(sys.argv[2])
    _pretend_to_have_booted_with_it()
    folder = Path("/run/systemd/own")  # not below /tmp or /var/tmp, of which the unit has its own
    folder.mkdir(mode=0o700)
    units, runtime, state = (folder / name for name in ("units", "run", "autopsy"))
    for each in (units, runtime, state, runtime / "autopsy/watch"):
        each.mkdir(mode=0o700, parents=True)
    shim = folder / "program"
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m autopsy "$@"\n')
    shim.chmod(0o755)
    said = f"StandardOutput=append:{kept}/log\nStandardError=append:{kept}/log\n"
    (units / UNIT.name).write_text(UNIT.read_text().replace(PROGRAM, str(shim)) + said)
    own = {"XDG_RUNTIME_DIR": str(runtime), "XDG_CONFIG_HOME": str(folder), "SYSTEMD_UNIT_PATH": f"{units}:"}
    os.environ["STATE_DIRECTORY"] = str(state)
    log = (kept / "log").open("a")
    manager = subprocess.Popen([SYSTEMD, "--user"], env=os.environ | own, stdout=log, stderr=log)
    try:
        systemctl = ("env", f"XDG_RUNTIME_DIR={runtime}", "systemctl", "--user")
        starter = UnitStarter(runtime / "autopsy/watch", systemctl, (str(units),))
        _until(lambda: starter.ask("show", "--property=Version"))
        launcher = CaptureLauncher(runtime / "autopsy/watch", units=starter)
        began = launcher.start("web1", f"pid:{pid}", pid, light=False)
        ends = _until(launcher.ended)
        why = starter.ask(
            "show", f"autopsy@pid:{pid}.service", "--property=ExecMainStatus,Result,StatusErrno,LoadState"
        )
        print(why, file=log, flush=True)
        left = os.listdir(runtime / "autopsy/watch")
        shim.write_text(f'#!/bin/sh\necho "$@" >{folder}/said\n')
        starter.ask("start", f"autopsy@pid:{pid}.service")  # as a person does
        said = (folder / "said").read_text()
        found = []
        for each in entries():
            manifest = open_bundle(each.bundle).manifest
            cost = sum(step.stop_ns for step in manifest.steps) / 1e6
            found.append((str(each.bundle), each.expendable, manifest.options, cost))
        ended = [(each.result, each.bundle, each.stop_ms) for each in ends]
        sys.stdout.write(json.dumps([began, ended, left, found, said]))
    finally:
        manager.send_signal(signal.SIGTERM)
        try:
            manager.wait(10)
        finally:
            manager.kill()
            manager.wait()


def _until(ask: Callable[[], Answer]) -> Answer:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if answer := ask():
            return answer
        time.sleep(0.2)
    raise TimeoutError


if __name__ == "__main__":
    with _in_a_group_of_its_own():
        main()
