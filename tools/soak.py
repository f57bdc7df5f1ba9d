"""Hurts many captures in many ways, counts, and prints what became of them as a table; run it with `make soak`.

Everything that it asserts is asserted, in a short form, by `make test`, too.
"""

from __future__ import annotations

import argparse
import gzip
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from autopsy.bundle import layout
from autopsy.bundle.verify import verify
from autopsy.commands.redact import redact
from autopsy.drill.machine import Machine
from support import lab
from support.surviving import Namespace, busy, capture, is_untouched, namespace, orphans_come_to_us
from tests.survival.test_survival_death import deaths
from tests.survival.test_survival_stress import assert_giant_is_captured

GUEST_JOBS = 4
SETTLE_SECONDS = 1.5  # of the guest's own clock, which tells of each second at its end
TOLD_EVERY = 50  # captures
QUIET_EVERY, QUIET_SECONDS = 3, 4.0  # what a capture costs is told by the seconds without one


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    fault: str
    how: str
    times: int
    result: str

    def __str__(self) -> str:
        return f"| {self.fault} | {self.how} | {self.times} | {self.result} |"


@dataclass(slots=True)
class Seconds:
    """The guest's seconds: how many latencies fell into which bucket, by whether a capture was under way."""

    during: Counter[int] = field(default_factory=Counter)
    without: Counter[int] = field(default_factory=Counter)
    operations: int = 0
    errors: int = 0
    corrupt: int = 0


def percentile(found: Counter[int], share: float) -> float:
    """Return the upper end, in ms, of the bucket in which that share of the latencies ends."""
    left = sum(found.values()) * (1 - share)
    for bucket in sorted(found, reverse=True):
        left -= found[bucket]
        if left <= 0:
            return float(2 ** ((bucket + 1) / 4) / 1000)
    return 0.0


def cpio(name: str, data: bytes) -> bytes:
    """Return an initramfs of one executable file: laid after another, it replaces the file of that name."""

    def entry(path: str, content: bytes, mode: int) -> bytes:
        fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % each for each in fields) + path.encode() + b"\0"
        head += bytes(-len(head) % 4)
        return head + content + bytes(-len(content) % 4)

    return entry(name, data, 0o100755) + entry("TRAILER!!!", b"", 0)


@contextmanager
def verifying_guest(place: Path) -> Iterator[Machine]:
    """Boot the small Linux guest with a load that verifies what it reads."""
    kernel, initrd = lab.guest_files()
    program = place / "verify"
    subprocess.run(
        ["gcc", "-O2", "-static", "-pthread", "-o", program, lab.HOUSE / "tests" / "guest/verify.c"], check=True
    )
    folder = place / "guest"
    folder.mkdir()
    (folder / "vmlinuz").symlink_to(kernel)
    (folder / "initrd.gz").write_bytes(initrd.read_bytes() + gzip.compress(cpio("bin/iogen", program.read_bytes())))
    os.environ["AUTOPSY_GUEST"] = str(folder)
    image = lab.disk(place / "disk.raw", mebibytes=256)
    with lab.guest(
        "7.2",
        *("-blockdev", f"driver=file,filename={image},node-name=f0,aio=threads,cache.direct=on"),
        *("-device", "virtio-blk-pci,id=vd0,drive=f0"),
        load=f"{GUEST_JOBS},1,4096,w,rand,100000",
        name="verifying",
    ) as machine:
        yield machine


def listen(machine: Machine, told: Seconds, seen: int, busy_since: float | None) -> int:
    """Take the guest's new lines; each is of the second that has just ended."""
    whole, _, _ = lab.console(machine).rpartition("\n")  # the last line may be under way
    lines = [line for line in whole.splitlines() if line.startswith("VERIFY ")]
    for line in lines[seen:]:
        words = line.split()
        if len(words) < 4 or not words[1].isdigit():
            raise RuntimeError(line)
        told.operations, told.errors, told.corrupt = (int(word) for word in words[1:4])
        found = Counter({int(bucket): int(count) for bucket, count in (word.split(":") for word in words[4:])})
        (told.without if busy_since is None else told.during).update(found)
    return len(lines)


def facts(machine: Machine) -> dict[str, int]:
    status = Path(f"/proc/{machine.pid}/status").read_text()
    rss = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
    return {"fds": len(os.listdir(f"/proc/{machine.pid}/fd")), "rss_kb": rss}


@dataclass(slots=True)
class Soaked:
    """What a soak has shown so far; its row can be printed at any time, and is, for a night's work must not be lost."""

    before: dict[str, int]
    told: Seconds = field(default_factory=Seconds)
    stops: list[float] = field(default_factory=list)

    def row(self, machine: Machine, left: list[Path]) -> Row:
        after = facts(machine)
        wrong = is_untouched(machine.pid)
        told, stops = self.told, sorted(self.stops) or [0.0]
        with_, without = percentile(told.during, 0.999), percentile(told.without, 0.999)
        good = not (told.errors or told.corrupt or left or wrong)
        words = (
            f"{'ok' if good else 'NOT OK'}: {told.operations} guest operations, {told.errors} I/O errors, "
            f"{told.corrupt} corrupt; p99.9 {with_:.1f} ms during, {without:.1f} ms without; "
            f"both stops together {stops[-1]:.1f} ms at most, {stops[len(stops) // 2]:.1f} ms in the middle; "
            f"descriptors {self.before['fds']} to {after['fds']}, "
            f"RSS {self.before['rss_kb'] >> 10} to {after['rss_kb'] >> 10} MB; {len(left)} files left, "
            f"{wrong or 'no thread'} changed"
        )
        return Row("none: captures under load", "a guest that verifies every block it reads", len(self.stops), words)


def soak(most: int, minutes: float) -> list[Row]:
    """Capture a verifying guest again and again, with a pause after every few captures."""
    with lab.folder() as place, verifying_guest(place) as machine, namespace() as memory:
        out = place / "out"
        out.mkdir()
        lab.until("the guest verifies", lambda: "VERIFY " in lab.console(machine), seconds=60)
        time.sleep(5)
        so_far = Soaked(facts(machine))
        seen = listen(machine, Seconds(), 0, None)
        give_up = time.monotonic() + minutes * 60
        while len(so_far.stops) < most and time.monotonic() < give_up:
            running = capture(machine.pid, out, "--fast", within=memory)
            while running.process.poll() is None:
                time.sleep(0.2)
                seen = listen(machine, so_far.told, seen, running.began)
            if running.end() != 0:
                raise RuntimeError(running.story)
            time.sleep(SETTLE_SECONDS)
            seen = listen(machine, so_far.told, seen, running.began)
            verify(running.bundle)
            so_far.stops.append(running.answer["stop_ms"])
            for each in out.iterdir():
                each.unlink()
            quiet = time.monotonic() + QUIET_SECONDS * (len(so_far.stops) % QUIET_EVERY == 0)
            while time.monotonic() < quiet and time.monotonic() < give_up:
                time.sleep(0.5)
                seen = listen(machine, so_far.told, seen, None)
            if len(so_far.stops) % TOLD_EVERY == 0:
                print(so_far.row(machine, memory.works()), file=sys.stderr, flush=True)
        time.sleep(2)
        return [so_far.row(machine, [*memory.works(), *out.iterdir()])]


def every_death(times: int) -> list[Row]:
    """End captures by every signal at moments spread over their whole length."""
    with (
        busy() as machine,
        namespace() as memory,
        tempfile.TemporaryDirectory(dir="/var/tmp") as out,
        orphans_come_to_us(),
    ):
        died = deaths(machine, memory, Path(out), times, seed=int(time.time()))
    counts = Counter(each.ending for each in died)
    left = Counter(each.ending for each in died if each.left)
    return [
        Row(
            f"our own death: {ending}",
            "at moments spread over a whole capture of a busy VM",
            count,
            "no thread stopped, nothing pending, QMP answers, no process of ours left; "
            f"{left[ending]} left a folder in memory, each opened, sealed and verified",
        )
        for ending, count in counts.items()
    ]


def giants() -> list[Row]:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as out:
        found = assert_giant_is_captured(Path(out), 2000, 200, 64)
    words = ", ".join(f"{name} {value:.0f}" for name, value in found.items())
    return [
        Row("very many of everything", "2,000 iothreads, 200 SCSI disks, 64 levels of qcow2", 2, f"captured: {words}")
    ]


def _reached(memory: Namespace, step: str) -> bool:
    return bool(list(memory.memory.glob(f"*.work/evidence/{step}")))


def killed_in_every_step() -> list[Row]:
    went: list[str] = []
    for step in layout.STEPS:
        with busy("killed") as machine, namespace() as memory, tempfile.TemporaryDirectory(dir="/var/tmp") as out:
            done = capture(machine.pid, out, "--gap", "3", "--budget", "40", within=memory)
            reached = partial(_reached, memory, step)
            lab.until(f"{step} began", reached, seconds=40)
            machine.process.send(signal.SIGKILL)
            code = done.end()
            went.append(f"{step}: {'sealed' if code == 9 and verify(done.bundle).files else code}")
    result = "each bundle whole" if all(each.endswith("sealed") for each in went) else "; ".join(went)
    return [Row("the VM ends in the middle", "SIGKILL once a step has begun, every step in turn", len(went), result)]


def redactions() -> list[Row]:
    same = total = 0
    for case in sorted((lab.HOUSE / "fixtures").iterdir()):
        found = next((each for each in (case / "bundle", case / "bundle.tar.zst") if each.exists()), None)
        if found is None:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch) / "in" / found.name
            copy.parent.mkdir()
            shutil.copytree(found, copy) if found.is_dir() else shutil.copyfile(found, copy)
            same += redact(copy, Path(scratch) / "out.tar.zst").same
            total += 1
    return [Row("privacy", "every stored case redacted and diagnosed again", total, f"{same} diagnoses the same")]


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--captures", type=int, default=int(os.environ.get("AUTOPSY_SOAK_CAPTURES", "1000")))
    words.add_argument("--minutes", type=float, default=float(os.environ.get("AUTOPSY_SOAK_MINUTES", "180")))
    words.add_argument("--deaths", type=int, default=100)
    words.add_argument("only", nargs="*", help="captures, deaths, giants, kills, redactions")
    asked = words.parse_args()
    parts: dict[str, Callable[[], list[Row]]] = {
        "deaths": lambda: every_death(asked.deaths),
        "kills": killed_in_every_step,
        "giants": giants,
        "redactions": redactions,
        "captures": lambda: soak(asked.captures, asked.minutes),
    }
    print("| fault | how | times | result |\n|---|---|---|---|", flush=True)
    failed = 0
    for name, part in parts.items():
        if asked.only and name not in asked.only:
            continue
        try:
            for row in part():
                print(row, flush=True)
        except Exception as error:  # noqa: BLE001 - the other parts are worth their time
            failed += 1
            traceback.print_exc()
            print(Row(name, "", 0, f"FAILED: {type(error).__name__}: {str(error)[:300]}"), flush=True)
        except BaseException as error:
            if type(error).__name__ != "Failed":  # pytest's own, from an assertion about time
                raise
            failed += 1
            print(Row(name, "", 0, f"FAILED: {str(error)[:300]}"), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
