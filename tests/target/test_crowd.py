"""Many processes of a stranger's that are named like a QEMU hide nobody's VM."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import pytest

from autopsy.drill.process import start
from autopsy.drill.site import site
from autopsy.target import target
from autopsy.target.platforms.platform import Roots
from support import lab
from support.builds import build, version

pytestmark = [pytest.mark.live, pytest.mark.timeout(180)]

CROWD = 10
GIB = 1 << 30


def runs(pid: int, binary: Path) -> bool:
    return os.readlink(f"/proc/{pid}/exe") == str(binary)


def test_a_vm_is_found_among_ten_slow_processes_of_a_stranger_that_are_named_like_it() -> None:
    """Each has a binary of 1 GiB, all of which was once searched for a version."""
    lab.need_root()
    uid = str(pwd.getpwnam("games").pw_uid)
    with site() as there, tempfile.TemporaryDirectory(dir="/dev/shm") as shared:
        Path(shared).chmod(0o755)
        for number in range(CROWD):
            binary = Path(shared) / f"qemu-slow{number}"
            shutil.copy(shutil.which("sleep") or "", binary)
            os.truncate(binary, GIB)
            ids = ("--reuid", uid, "--regid", uid, "--clear-groups")
            slow = start(there, ["setpriv", *ids, binary, "600"], log="slow.log")
            slow.wait_until("it runs", partial(runs, slow.pid, binary))
        with lab.qemu("7.2", name="web1-in-a-crowd") as vm:
            found = target.find_target("web1-in-a-crowd", Roots(run=Path("/nonexistent")))
            os.close(found.pidfd)
            assert found.pid == vm.pid
            listed = subprocess.run(
                [sys.executable, "-m", "autopsy", "ps", "--json"], capture_output=True, text=True, check=True
            )
            known = {
                each["pid"]: (each["name"], each["qemu_version"].partition(" ")[0])
                for each in json.loads(listed.stdout)
            }
            assert known[vm.pid] == ("web1-in-a-crowd", version(build("7.2")))
