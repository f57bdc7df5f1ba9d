"""Changes bytes of a binary's debug information and has gdb read it in the sandbox, again and again.

python tools/mutate_elf.py --seconds 600 [--seed 1]

It prints how often gdb ended in which way, and fails if anything beside the scratch folder has changed.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

from autopsy.examine.core.elf import Elf
from autopsy.examine.gdb.mi import RAILS
from autopsy.linux.confine import confined, sandbox
from autopsy.linux.confine.confined import Died, Refused, TooSlow, signal_name
from autopsy.linux.environment import ours

SOURCE = """
#include <pthread.h>
#include <unistd.h>
struct item { struct item *next; union { int number; char text[8]; } value; };
static struct item *first;
static int walk(struct item *at) { int n = 0; for (; at; at = at->next) n += at->value.number; return n; }
static void *waiting(void *x) { for (;;) pause(); return x; }
int main(void) { pthread_t thread; pthread_create(&thread, 0, waiting, 0); return walk(first); }
"""
SECTIONS = (".debug_info", ".debug_abbrev", ".debug_line", ".debug_str", ".debug_line_str", ".debug_aranges")
SECTIONS += (".debug_rnglists", ".debug_loclists", ".eh_frame", ".eh_frame_hdr", ".symtab")
ASKED = (
    "file it",
    "info line main",
    "info scope main",
    "ptype struct item",
    "info functions",
    "list walk",
    "disas main",
)
GDB_SECONDS = 20.0


def main() -> None:
    """Mutate for as long as was asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    wanted = parser.parse_args()
    dice, ends_at = random.Random(wanted.seed), time.monotonic() + wanted.seconds  # noqa: S311 - to be repeated
    ended: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="mutate-") as folder:
        place = Path(folder)
        (place / "it.c").write_text(SOURCE)
        subprocess.run(["gcc", "-g", "-O1", "-pthread", "-o", place / "it", place / "it.c"], check=True)
        whole = (place / "it").read_bytes()
        before = listed(place)
        while time.monotonic() < ends_at:
            scratch = place / "scratch"
            scratch.mkdir()
            (scratch / "it").write_bytes(mutated(whole, dice))
            (scratch / "it").chmod(0o644)
            ended[read_by_gdb(scratch)] += 1
            subprocess.run(["rm", "-r", scratch], check=True)
        changed = listed(place) != before
    for how, count in ended.most_common():
        print(f"{count:>7}  {how}")
    told = "SOMETHING" if changed else "nothing"
    print(f"{sum(ended.values()):>7}  altogether, seed {wanted.seed}; beside the scratch folder {told} changed")
    raise SystemExit(changed)


def listed(place: Path) -> list[tuple[str, int, int]]:
    """Return what lies in the folder."""
    return sorted((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in place.iterdir())


def mutated(whole: bytes, dice: random.Random) -> bytes:
    """Return the binary with one to six changes in what only a debugger reads."""
    sections = [each for name, each in Elf(whole).sections.items() if name in SECTIONS and each.size]
    data = bytearray(whole)
    for _ in range(dice.choice((1, 1, 2, 3, 6))):
        section = dice.choice(sections)
        at = section.offset + dice.randrange(section.size)
        data[at] = dice.choice((dice.randrange(256), data[at] ^ 1 << dice.randrange(8), 0xFF, 0))
    return bytes(data)


def read_by_gdb(scratch: Path) -> str:
    """Return how a confined gdb ended."""

    def work(box: sandbox.Confined, _line: confined.Line) -> bytes:
        words = ["gdb", "-nx", "-q", "-batch"]
        for rail in RAILS:
            words += ["-iex", rail]
        for question in ASKED:
            words += ["-ex", question]
        done = subprocess.run(
            words,
            env=ours(),
            cwd=box.given,
            capture_output=True,
            check=False,
            timeout=GDB_SECONDS,
            preexec_fn=sandbox.send_no_signal,
        )
        if done.returncode < 0:
            return f"gdb died: {signal_name(-done.returncode)}".encode()
        if b"internal-error" in done.stderr:
            return b"an internal error of gdb"
        return b"gdb read it" if b"struct item {" in done.stdout else b"gdb could not read it"

    inside = sandbox.Sandbox(scratch=scratch, readable=sandbox.python_tree())
    try:
        return confined.run(work, inside, seconds=GDB_SECONDS + 5, hear=lambda _, data: data).decode()
    except (Died, TooSlow, Refused) as error:
        return f"{type(error).__name__}: {str(error)[:60]}"


if __name__ == "__main__":
    os.umask(0o022)
    main()
