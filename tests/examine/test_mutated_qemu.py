"""A real QEMU whose file was made to harm whoever reads it: its capture tells what became of gdb, and has the rest."""

from __future__ import annotations

import json
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autopsy.bundle import layout
from autopsy.bundle.reader import open_bundle
from autopsy.bundle.verify import verify
from support import lab
from support.builds import build
from tests.examine import hostile_dwarf

pytestmark = [pytest.mark.live, pytest.mark.timeout(200)]

RAILS = ("-nx", "-q", "-batch", "-iex", "set debuginfod enabled off", "-iex", "set auto-load no")
OF_OTHERS = {
    layout.WITNESS: (layout.CMDLINE, layout.MAPS),
    layout.FREEZE: (layout.FREEZE_RECORD,),
    layout.QUERY_STATUS: (layout.QMP,),
    layout.PROC_FDS: (layout.FDS,),
    layout.HOST: (layout.HOST_FILES,),
    layout.GDB_THREADS: (layout.THREADS, layout.MODULES),  # our own reader's, of the same file
}


def with_hostile_debug_information(binary: Path, copy: Path) -> None:
    if shutil.which("objcopy") is None:
        lab.missing("objcopy is not installed")
    hostile_dwarf.graft(binary, copy)


def with_section_headers_that_lead_nowhere(binary: Path, copy: Path) -> None:
    """Only what is loaded makes a program run: its sections are for debuggers."""
    data = bytearray(binary.read_bytes())
    (table,) = struct.unpack_from("<Q", data, 0x28)
    size, count, _ = struct.unpack_from("<HHH", data, 0x3A)
    for number in range(1, count):
        at = table + number * size
        struct.pack_into("<QQQ", data, at + 16, 2**63 - number, 2**62 + number, 2**61)  # address, offset, size
    copy.write_bytes(data)


@pytest.mark.parametrize("mutate", [with_hostile_debug_information, with_section_headers_that_lead_nowhere])
def test_a_mutated_qemu_costs_at_most_what_gdb_would_have_told(
    mutate: Callable[[Path, Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.need_root()
    honest = build("7.2")
    modules = next(Path("/usr/lib").glob("*-linux-gnu/qemu"), None)
    monkeypatch.setenv("QEMU_MODULE_DIR", str(modules))  # a copy does not find them beside itself
    copy = tmp_path / "qemu-system-x86_64"
    mutate(honest.binary, copy)
    copy.chmod(0o755)
    dies = gdb_dies_of(copy)
    with lab.qemu(replace(honest, binary=copy), name="mutated") as machine:
        answer = captured(machine.pid, tmp_path / "out")
        assert machine.qmp("query-status")["running"]
    steps = {each["name"]: (each["outcome"], each["why"]) for each in answer["steps"]}
    outcome, why = steps.pop(layout.GDB_THREADS)
    assert outcome in {"Failed", "Collected"}, why  # gdb may die after it has told something
    assert ("died: SIGSEGV; the debug information may be hostile" in why) is dies, why
    assert {name for name, (how, _) in steps.items() if how == "Failed"} == set()
    bundle = Path(answer["bundle"])
    assert verify(bundle).files
    held = open_bundle(bundle)
    for step, files in OF_OTHERS.items():
        for file in files:
            assert held.read(layout.evidence(step, file)), (step, file)
    assert layout.CORE in held.names()


def gdb_dies_of(binary: Path) -> bool:
    """Return whether this machine's gdb does, outside of any capture."""
    asked = ("-ex", f"file {binary}", "-ex", "info line *0x300000")
    done = subprocess.run(["gdb", *RAILS, *asked], capture_output=True, check=False, timeout=60)
    return done.returncode == -signal.SIGSEGV


def captured(pid: int, out: Path) -> Any:
    words = (sys.executable, "-m", "autopsy", "capture", f"pid:{pid}", "--fast", "--json", "--out", str(out))
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, cwd=lab.HOUSE)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
