"""A VM that attacks whoever examines it: with the bytes of its binary, and with the names of what it has mapped."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from autopsy.bundle import layout
from autopsy.bundle.reader import open_bundle
from autopsy.examine.gdb import without_gdb
from support import lab

pytestmark = pytest.mark.live

SECONDS = 120
STAND_IN = """
from pathlib import Path
from autopsy.cli.app import main
from autopsy.linux import environment
from autopsy.linux.confine import sandbox
sandbox.SYSTEM += (Path({fake!r}),)
environment.PATH = {folder!r}
main()
"""
PROGRAM = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
const char banner[] = "QEMU emulator version 7.2.15 (Debian)\n";
const char *volatile keep = banner;
static void *waiting(void *x) { for (;;) pause(); return x; }
int main(void) {
  pthread_t thread;
  pthread_create(&thread, 0, waiting, 0);
  const char *library = getenv("LIBRARY"), *lure = getenv("LURE");
  if (library) {  /* forge the build-id in memory, so that the file is another, and lay a lure in its place */
    int file = open(library, O_RDONLY);
    unsigned char *at = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
    for (int i = 8; i < 4000; i++)
      if (!memcmp(at + i, "GNU\0", 4) && at[i - 4] == 3 && at[i - 8] == 20) { at[i + 4] ^= 0xff; break; }
    mprotect(at, 4096, PROT_READ);
    mmap(at + 4096, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_FIXED, file, 4096);
    unlink(library);
    if (symlink(lure, library)) return 1;
  }
  puts("ready");
  fflush(stdout);
  for (;;) pause();
}
"""


@pytest.fixture
def anybodys() -> Iterator[Path]:
    """Return a folder that the sandbox's user can reach."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="at-") as folder:
        os.chmod(folder, 0o755)  # noqa: S103 - that is what it is for
        yield Path(folder)


def compiled(place: Path, *, name: str = "qemu-system-x86_64") -> Path:
    if shutil.which("gcc") is None:
        lab.missing("gcc is not installed")
    source, binary = place / "vm.c", place / name
    source.write_text(PROGRAM)
    subprocess.run(["gcc", "-g", "-O1", "-pthread", "-o", binary, source], check=True)
    return binary


@contextmanager
def running(binary: Path, **environment: str) -> Iterator[int]:
    with subprocess.Popen(
        [binary, "-name", "lure"], stdout=subprocess.PIPE, env={**os.environ, **environment}
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process.pid
        finally:
            process.kill()


def captured(pid: int, out: Path, *before: str) -> Any:
    words = ("-m", "autopsy", "capture", f"pid:{pid}", "--fast", "--json", "--out", str(out))
    done = subprocess.run(
        [*before, sys.executable, *words],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def step(answer: Any, name: str) -> tuple[str, str]:
    return next((each["outcome"], each["why"]) for each in answer["steps"] if each["name"] == name)


def test_a_gdb_that_a_hostile_binary_crashes_is_told_and_costs_only_its_own_part(short: Path, anybodys: Path) -> None:
    """A stand-in dies as gdb does of such a binary, whichever version of gdb is installed here."""
    fake = anybodys / "gdb"
    (short / "die.c").write_text("int main(void) { return *(volatile int *)0; }")
    subprocess.run(["gcc", "-o", fake, short / "die.c"], check=True)
    binary = compiled(short)
    program = STAND_IN.format(fake=str(fake), folder=str(fake.parent))
    with running(binary) as pid:
        done = subprocess.run(
            [sys.executable, "-c", program, "capture", f"pid:{pid}", "--fast", "--json", "--out", str(short / "out")],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    outcome, why = step(answer, layout.GDB_THREADS)
    assert outcome == "Collected"
    assert f"gdb died: SIGSEGV; the debug information may be hostile: {without_gdb.NOTE}" in why
    held = open_bundle(Path(answer["bundle"]))
    for file in (layout.THREADS, layout.MODULES, layout.LOCKS, layout.COROUTINES):
        assert held.read(layout.evidence(layout.GDB_THREADS, file)), file
    backtrace = held.read(layout.evidence(layout.GDB_THREADS, layout.BACKTRACE)).decode()
    assert backtrace.count(without_gdb.MARK) == backtrace.count("Thread ") == 2
    assert {each["outcome"] for each in answer["steps"]} & {"Failed", "TimedOut"} == set()


@pytest.mark.parametrize("kind", ["a device", "a FIFO"])
def test_nothing_is_opened_that_stands_in_a_librarys_place(kind: str, short: Path) -> None:
    for tool in ("strace", "gcc"):
        if shutil.which(tool) is None:
            lab.missing(f"{tool} is not installed")
    library = short / "x.so"
    (short / "l.c").write_text("int f(void) { return 1; }")
    subprocess.run(["gcc", "-shared", "-fPIC", "-Wl,--build-id=sha1", "-o", library, short / "l.c"], check=True)
    lure = Path("/dev/ptmx")
    if kind == "a FIFO":
        lure = short / "fifo"
        os.mkfifo(lure)
    log = short / "log"
    with running(compiled(short), LIBRARY=str(library), LURE=str(lure)) as pid:
        began = time.monotonic()
        answer = captured(pid, short / "out", "strace", "-f", "-qq", "-e", "trace=openat,openat2,open", "-o", str(log))
        assert time.monotonic() - began < SECONDS
    assert step(answer, layout.GDB_THREADS)[0] == "Collected"
    named = [
        line for line in log.read_text(errors="replace").splitlines() if f'{lure}"' in line or f'{library}"' in line
    ]
    assert [line for line in named if "O_PATH" not in line and "ENOENT" not in line and "EACCES" not in line] == []


def test_a_build_ids_owner_leaves_nothing_behind_for_the_next_vm(short: Path) -> None:
    cache = Path("/var/cache/autopsy")
    before = set(cache.iterdir()) if cache.is_dir() else set()
    with running(compiled(short)) as pid:
        captured(pid, short / "out")
    assert (set(cache.iterdir()) if cache.is_dir() else set()) == before
