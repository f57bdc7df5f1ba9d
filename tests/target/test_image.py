"""A QEMU that an explicit loader runs is known by its own binary."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from autopsy.drill.process import start
from autopsy.drill.site import site
from autopsy.target import target
from autopsy.target.image import is_loader
from autopsy.target.platforms.platform import Roots
from support import lab
from support.builds import version
from support.verdicts import captured

SMALL = ("-nodefaults", "-no-user-config", "-display", "none", "-m", "16", "-name", "behind-a-loader")
# QEMU looks for its modules and its firmware beside what it takes for its own binary.
BESIDE = ("-L", "/usr/share/qemu", "-L", "/usr/share/seabios", "-vga", "none")
LOADER = "/lib64/ld-linux-x86-64.so.2"


@pytest.mark.parametrize(
    ("name", "loads"),
    [
        ("/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", True),
        ("/lib/ld-musl-x86_64.so.1", True),
        ("/lib/ld-2.31.so", True),
        ("/lib64/ld64.so.2", True),
        ("/usr/bin/ld.so", True),
        ("/usr/bin/ld", False),
        ("/usr/bin/ldd", False),
        ("/usr/lib/libld.so", False),
    ],
)
def test_the_loader_is_known_by_its_name(name: str, loads: bool) -> None:  # noqa: FBT001 - a table
    assert is_loader(name) is loads


@pytest.mark.live
@pytest.mark.timeout(120)
def test_a_qemu_behind_an_explicit_loader_is_known_by_its_own_binary(tmp_path: Path) -> None:
    binary = lab.build("7.2").binary.resolve()
    with site() as there:
        monitor = there.folder / "qmp.sock"
        modules = "QEMU_MODULE_DIR=/usr/lib/x86_64-linux-gnu/qemu"
        words = ("env", modules, LOADER, binary, *SMALL, *BESIDE, "-qmp", f"unix:{monitor},server=on,wait=off")
        vm = start(there, words, log="qemu.log")
        vm.wait_until("it listens", monitor.exists)
        assert is_loader(os.readlink(f"/proc/{vm.pid}/exe"))
        found = target.find_target("behind-a-loader", Roots(run=Path("/nonexistent")))
        os.close(found.pidfd)
        said = subprocess.run(["readelf", "-n", binary], capture_output=True, text=True, check=True).stdout
        assert (found.pid, found.record.exe) == (vm.pid, str(binary))
        assert found.record.build_id == said.partition("Build ID: ")[2].split()[0]
        assert found.record.qemu_version.startswith(version(lab.build("7.2")))
        verdict = captured(vm.pid, tmp_path)
        assert verdict.where == "none", verdict
