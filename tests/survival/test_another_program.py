"""A process that starts another program while it is captured: what that one holds may be for root's eyes alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autopsy.bundle import layout
from autopsy.bundle.reader import open_bundle
from support import lab, strangers

pytestmark = [pytest.mark.live, pytest.mark.timeout(200)]

SECRET = b"what only root may read, as su reads /etc/shadow"
# Waits until a capture's folder shows, and a little longer; then it is another program, by its own will.
TURNCOAT = r"""
#include <dirent.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
const char banner[] __attribute__((used)) = "QEMU emulator version 7.2.15 (of a stranger)";
static int shows(const char *place) {
  struct dirent *each; int found = 0; DIR *folder = opendir(place);
  while (folder && (each = readdir(folder))) found |= !strncmp(each->d_name, "autopsy-turncoat-", 17);
  if (folder) closedir(folder);
  return found;
}
int main(int count, char **words) {
  puts("ready"); fflush(stdout);
  while (!shows("/dev/shm") && !shows("/run")) usleep(1000);
  usleep(atoi(words[count - 1]));
  execl(words[count - 2], words[0], "-name", "turncoat", (char *)0);
  return 1;
}
"""
PRIVILEGED = r"""
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>
int main(int count, char **words) {
  char *held = malloc(1 << 16);
  int file = open(FILE, O_RDONLY);
  (void)count; (void)words;
  if (read(file, held, 1 << 16) < 1) return 1;
  for (;;) pause();
}
"""


@pytest.fixture
def programs() -> Iterator[tuple[Path, Path]]:
    """Return a stranger's program that is taken for a QEMU, and a program that is root's whoever starts it."""
    lab.need_root()
    if shutil.which("gcc") is None:
        lab.missing("gcc is not installed")
    with strangers.everybodys(0o755) as place:
        secret, turncoat, privileged = place / "secret", place / "qemu-system-x86_64", place / "privileged"
        secret.write_bytes(SECRET)
        secret.chmod(0o600)
        for binary, source, words in (
            (turncoat, TURNCOAT, ()),
            (privileged, PRIVILEGED, (f'-DFILE="{secret}"',)),
        ):
            code = place / f"{binary.name}.c"
            code.write_text(source)
            subprocess.run(["gcc", "-O1", *words, "-o", binary, code], check=True, timeout=60)
        turncoat.chmod(0o755)
        privileged.chmod(0o4755)
        yield turncoat, privileged


@pytest.mark.parametrize("microseconds", ["0", "60000"])
def test_what_a_program_of_root_s_holds_is_not_taken_for_the_vm_that_started_it(
    microseconds: str, programs: tuple[Path, Path], tmp_path: Path
) -> None:
    turncoat, privileged = programs
    command = [turncoat, "-name", "turncoat", privileged, microseconds]
    with subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=strangers.become) as process:  # noqa: PLW1509 - this process has one thread
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            answer = captured(process.pid, tmp_path / "out")
            assert Path(f"/proc/{process.pid}/exe").readlink() == privileged
        finally:
            process.kill()
    held = open_bundle(Path(answer["bundle"]))
    core = tmp_path / "core"
    if held.extract(layout.CORE, core):
        assert SECRET not in core.read_bytes()
    assert not any(SECRET in data for data in held.files.values())
    told = [each["why"] for each in answer["steps"] if each["outcome"] == "Failed"]
    assert any("has started another program" in why for why in told), told


def captured(pid: int, out: Path) -> Any:
    words = (sys.executable, "-m", "autopsy", "capture", f"pid:{pid}", "--fast", "--json", "--out", str(out))
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, cwd=lab.HOUSE)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
