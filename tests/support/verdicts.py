"""Captures a live QEMU as an operator would, and looks whether it was harmed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 120


@dataclass(frozen=True, slots=True, repr=False)
class Verdict:
    """What `capture --json` said of a VM."""

    answer: Mapping[str, Any]

    @property
    def where(self) -> str:
        return str(self.answer["verdict"]["where"])

    @property
    def signature(self) -> str:
        return str(self.answer["verdict"]["signature"])

    @property
    def confidence(self) -> str:
        return str(self.answer["verdict"]["confidence"])

    @property
    def objects(self) -> str:
        """Return every object's name, so that one can be looked for."""
        return " | ".join(self.answer["verdict"]["objects"])

    @property
    def secondary(self) -> set[str]:
        return {each["signature"] for each in self.answer["verdict"]["secondary"]}

    @property
    def ruled_out(self) -> dict[str, str]:
        return {each["signature"]: each["why"] for each in self.answer["verdict"]["ruled_out"]}

    def __repr__(self) -> str:
        verdict = self.answer["verdict"]
        late = [(each["name"], each["outcome"], each["why"]) for each in self.answer["steps"] if each["why"]]
        return f"{self.where}/{self.signature} {self.confidence}: {verdict['headline']} {verdict['objects']} {late}"


def captured(pid: int, out: Path, *words: str) -> Verdict:
    """Capture a QEMU with --fast, and fail when it is worse off afterwards."""
    before = threads(pid)
    done = subprocess.run(
        [sys.executable, "-m", "autopsy", "capture", f"pid:{pid}", "--fast", "--json", "--out", str(out), *words],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    assert not harm(before, threads(pid))
    return Verdict(json.loads(done.stdout))


@dataclass(frozen=True, slots=True)
class Told:
    """What /proc says of one thread."""

    state: str
    tracer: str
    pending: int


def threads(pid: int) -> dict[int, Told]:
    """Return what a capture must leave as it was, thread by thread."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            lines = (task / "status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue  # that thread has ended meanwhile
        fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        pending = int(fields["SigPnd"], 16) | int(fields["ShdPnd"], 16)
        found[int(task.name)] = Told(fields["State"][0], fields["TracerPid"], pending)
    return found


def harm(before: Mapping[int, Told], after: Mapping[int, Told]) -> list[str]:
    """Return what a capture has left behind in the threads of its target."""
    found = []
    for tid, now in after.items():
        was = before.get(tid, Told("S", "0", 0))
        if now.state in "tT" and was.state not in "tT":
            found.append(f"thread {tid} is in State {now.state}")
        if now.tracer not in {"0", was.tracer}:
            found.append(f"thread {tid} is traced by {now.tracer}")
        if now.pending & ~was.pending:
            found.append(f"thread {tid} has signals pending: {now.pending:#x}")
    return found
