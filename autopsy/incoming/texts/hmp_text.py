"""Reads what QEMU's human monitor prints (`info block` and the like) as the answers that QMP gives to the same."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from autopsy.bundle.records import QmpExchange
from autopsy.dataclass import dataclass

MOST_ENTRIES = 4_000
MOST_NAME = 300
DETAIL = "    "  # what an entry's own lines begin with
SHUT = "[not inserted]"
ATTACHED, STATUS, LIMITS, REMOVABLE = "Attached to:", "I/O status:", "I/O throttling:", "Removable device:"
DETAILS = (ATTACHED, STATUS, LIMITS, REMOVABLE, "Cache mode:", "Backing file:", "Detect zeroes:")
COUNTERS = ": rd_bytes="
THREAD, CPU, THREAD_ID = "  thread_id=", "CPU #", "thread_id="
RUNS, MIGRATES, NO_JOBS = "VM status: ", "Migration status: ", "No active jobs"
JOB, JOB_STREAMS, COMPLETED, SPEED = "Type ", "Streaming device ", ": Completed ", " bytes, speed limit "
WORD = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")

Answer = dict[str, Any]  # as QEMU's JSON would be


@dataclass(slots=True)
class HmpText:
    """What was met so far, by the question of QMP's that it answers; each object once, as it was shown first."""

    found: dict[str, dict[str, Answer]] = field(default_factory=dict)
    head: str = ""  # a line that may begin an entry of `info block`
    entry: Answer | None = None
    owner: str = ""  # a line that may be an iothread's name
    row: int = 0  # of the counters: a backend without a name has only its place

    def feed(self, line: str) -> bool:
        """Take one line; return whether it is an answer, or a part of one."""
        line = line.rstrip("\r\n ").removeprefix("> ")
        if line.startswith(DETAIL) and (self.head or self.entry is not None) and self._detail(line.strip(" ")):
            return True
        self.entry = None
        owner, self.owner, self.head = self.owner, "", ""
        if line.startswith(THREAD):
            return self._thread(owner, line)
        if self._whole(line):
            return True
        if ": " in line and line.endswith((")", SHUT)) and not line.startswith((" ", "#", "(")):
            self.head = line
        elif line.endswith(":") and WORD.issuperset(line[:-1]):
            self.owner = line[:-1]
        return False

    def _whole(self, line: str) -> bool:
        """Take what is told in one line."""
        bare = line.strip(" ")
        if COUNTERS in line:
            self.row += 1
            return self._counters(line)
        self.row = 0
        if bare.startswith(RUNS):
            return self._status(bare.removeprefix(RUNS))
        if bare.startswith(MIGRATES):
            return self._add("query-migrate", "", {"status": bare.removeprefix(MIGRATES)[:MOST_NAME]})
        if bare.startswith(NO_JOBS):
            return self._add("query-block-jobs", "", {})
        if COMPLETED in bare and SPEED in bare:
            return self._job(bare)
        return CPU in bare and THREAD_ID in bare and self._cpu(bare)

    def _add(self, question: str, name: str, answer: Answer) -> bool:
        answers = self.found.setdefault(question, {})
        if len(answers) < MOST_ENTRIES:
            answers.setdefault(name, answer)
        return True

    def _status(self, words: str) -> bool:
        """Take `running`, or `paused (io-error)`."""
        status, _, reason = words.partition(" ")
        reason = reason.strip("() ") or status
        return self._add("query-status", "", {"status": reason, "running": status == "running"})

    def _detail(self, bare: str) -> bool:
        if not bare.startswith(DETAILS):
            return False
        if self.entry is None:
            self.entry = _entry(self.head)
            self.head = ""
        key, _, value = bare.partition(":")
        value = value.strip(" ")
        match f"{key}:":
            case "Attached to:":
                self.entry["qdev"] = value[:MOST_NAME]
            case "I/O status:":
                self.entry["io-status"] = value[:MOST_NAME]
            case "Removable device:":
                self.entry["removable"] = True
                self.entry["locked"] = value.startswith("locked")
            case "I/O throttling:" if "inserted" in self.entry:
                self.entry["inserted"] |= _pairs(value)
            case _:
                pass
        # `info block -n` lists nodes, in the same words but for these: no guest's disk.
        if self.entry["device"] or "qdev" in self.entry or self.entry["removable"]:
            self._add("query-block", self.entry["name"], self.entry)
        return True

    def _counters(self, line: str) -> bool:
        name, _, rest = line.partition(COUNTERS)
        name = name.strip(" ")[:MOST_NAME]
        statistics = {"device": name, "stats": _pairs(f"rd_bytes={rest}")}
        return self._add("query-blockstats", f"{self.row} {name}", statistics)

    def _job(self, bare: str) -> bool:
        """Take `Type mirror, device d1: Completed 1 of 2 bytes, speed limit 0 bytes/s`."""
        title, _, rest = bare.partition(COMPLETED)
        done, _, rest = rest.partition(" of ")
        whole, _, speed = rest.partition(SPEED)
        kind = "stream" if title.startswith(JOB_STREAMS) else title.removeprefix(JOB).partition(",")[0]
        device = title.rpartition("device ")[2][:MOST_NAME]
        numbers = {"offset": _number(done), "len": _number(whole), "speed": _number(speed.partition(" ")[0])}
        return self._add("query-block-jobs", device, {"type": kind[:MOST_NAME], "device": device, **numbers})

    def _cpu(self, bare: str) -> bool:
        index = _number(bare.partition(CPU)[2].partition(":")[0])
        cpu = {"cpu-index": index, "thread-id": _number(bare.rpartition(THREAD_ID)[2].partition(" ")[0])}
        return self._add("query-cpus-fast", f"{index}", cpu)

    def _thread(self, owner: str, line: str) -> bool:
        thread = {"id": owner, "thread-id": _number(line.removeprefix(THREAD))}
        return bool(owner) and self._add("query-iothreads", owner, thread)

    def exchanges(self) -> tuple[QmpExchange, ...]:
        """Return everything as QMP's own answers."""
        self._name_counters()
        made = []
        for question, answers in self.found.items():
            single = question in {"query-status", "query-migrate"}
            exchanges = [
                {key: value for key, value in answer.items() if key != "name"} for answer in answers.values() if answer
            ]
            made.append(
                QmpExchange(
                    question=question,
                    outcome="answered",
                    asked_ns=0,
                    ms=0.0,
                    deadline_ms=0.0,
                    answer=exchanges[0] if single else exchanges,
                )
            )
        return tuple(made)

    def _name_counters(self) -> None:
        """Name the counters of backends without a name: QEMU lists them in the order of `info block`."""
        disks = tuple(self.found.get("query-block", {}).values())
        counters = tuple(self.found.get("query-blockstats", {}).values())
        for disk, counted in zip(disks, counters, strict=False) if len(disks) == len(counters) else ():
            if not counted["device"] and not disk["device"]:
                counted["qdev"] = disk.get("qdev", "")


def _entry(head: str) -> Answer:
    """Read `d0 (#block172): a.qcow2 (qcow2, read-only)`, `node: file (raw)`, and `cd: [not inserted]`."""
    title, _, rest = head.partition(": ")
    name, bracket, node = title[: 2 * MOST_NAME].partition(" (")
    node = node.removesuffix(")") if bracket else ""
    entry: Answer = {"name": name, "device": name if bracket else "", "removable": False, "locked": False}
    if rest == SHUT:
        entry["device"] = name
        return entry
    file, _, kind = rest.removesuffix(")").rpartition(" (")
    driver, *flags = (word.strip(" ") for word in kind.split(","))
    # A backend without a name of its own is called by its node's.
    entry["inserted"] = {"node-name": node or name, "file": file, "drv": driver, "ro": "read-only" in flags}
    return entry


def _pairs(words: str) -> Answer:
    """Read `bps=0 iops=50 group=g0`."""
    pairs: Answer = {}
    for word in words.split(" ")[:100]:
        key, equals, value = word.partition("=")
        if equals:
            pairs[key[:MOST_NAME]] = value[:MOST_NAME] if key == "group" else _number(value)
    return pairs


def _number(digits: str) -> int:
    digits = digits.strip(" ")
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 20 else 0
