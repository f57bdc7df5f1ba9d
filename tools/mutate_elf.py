"""Changes bytes of a binary's debug information and has gdb read it in the sandbox, again and again.

python tools/mutate_elf.py --seconds 600 [--seed 1] [--keep FOLDER]

It prints how often gdb ended in which way, keeps one binary of each way to die if that is wanted, and fails if anything
outside has changed: what gdb was given, the system's files, files that anybody may write, files of the sandbox's users.
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
from autopsy.linux.confine.confined import Died, TooSlow, WorkRaised, signal_name
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
KEPT = 8  # binaries of each way to die
SYSTEMS = ("/etc", "/usr", "/boot", "/opt", "/srv", "/home", "/lib")
ANYBODYS = ("/", "/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue", "/run")  # noqa: S108 - they are looked at


def main() -> None:
    """Mutate for as long as was asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path)
    wanted = parser.parse_args()
    dice = random.Random(wanted.seed)  # noqa: S311 - to be repeated
    ended: Counter[str] = Counter()
    changed: list[str] = []
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="mutate-") as folder:
        place = Path(folder)
        whole = compiled(place)
        before = outside()
        beside = listed(place)
        ends_at = time.monotonic() + wanted.seconds
        while time.monotonic() < ends_at:
            scratch = place / "scratch"
            scratch.mkdir()
            (scratch / "it").write_bytes(mutated(whole, dice))
            (scratch / "it").chmod(0o644)
            given = listed(scratch)
            how = read_by_gdb(scratch)
            ended[how] += 1
            if listed(scratch) != given:
                changed.append(f"what gdb was given, in round {sum(ended.values())}")
            if wanted.keep and "died" in how and ended[how] <= KEPT:
                name = f"{how.rpartition(' ')[2]}-{ended[how]}"
                (wanted.keep / name).write_bytes((scratch / "it").read_bytes())
            subprocess.run(["rm", "-r", scratch], check=True)
        if listed(place) != beside:
            changed.append(f"{place}")
        after = outside()
        changed += [path for path, facts in before.items() if after.get(path, facts) != facts]
        changed += of_the_sandbox()
    for how, count in ended.most_common():
        print(f"{count:>7}  {how}")
    print(f"{sum(ended.values()):>7}  altogether, seed {wanted.seed}")
    print(f"{len(changed):>7}  of {len(before)} files outside have changed, or were added")
    for path in changed:
        print(f"         changed: {path}")
    raise SystemExit(bool(changed))


def compiled(place: Path) -> bytes:
    (place / "it.c").write_text(SOURCE)
    subprocess.run(["gcc", "-g", "-O1", "-pthread", "-o", place / "it", place / "it.c"], check=True)
    return (place / "it").read_bytes()


def listed(place: Path) -> list[tuple[str, int, int, int]]:
    """Return what lies in the folder."""
    facts = ((path, path.stat()) for path in place.iterdir() if path.name != "scratch")
    return sorted((str(path), stat.st_size, stat.st_mtime_ns, stat.st_mode) for path, stat in facts)


def outside() -> dict[str, str]:
    """Return size, dates, owner and mode of the system's files, and of those that anybody may write."""
    facts = ("-printf", r"%p\t%s %T@ %C@ %U %m\n")
    told = found(SYSTEMS, "-type", "f", *facts) + found(ANYBODYS, "-type", "f", "-perm", "-0002", *facts)
    return dict(line.split("\t", 1) for line in told if "\t" in line)


def of_the_sandbox() -> list[str]:
    """Return what belongs to a user of the sandbox: nothing of it is to be seen outside."""
    return found(ANYBODYS, "-uid", f"+{min(sandbox.UIDS) - 1}", "-uid", f"-{max(sandbox.UIDS) + 1}", "-print")


def found(places: tuple[str, ...], *words: str) -> list[str]:
    done = subprocess.run(["find", *places, "-xdev", *words], capture_output=True, text=True, check=False)
    return done.stdout.splitlines()  # what comes and goes while it looks is no error of ours


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

    def work(box: sandbox.Confined, _line: confined.AnswerPipe) -> bytes:
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
    except (Died, TooSlow, WorkRaised) as error:
        return f"{type(error).__name__}: {str(error)[:60]}"


if __name__ == "__main__":
    os.umask(0o022)
    main()
