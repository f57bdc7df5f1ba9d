"""What the host's kernel and its journal have said of late."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterable
from functools import partial

from autopsy.capture.reading.programs import output
from autopsy.capture.reading.reader import SectionRead

KMSG = "/dev/kmsg"
KMSG_LINES = 500
RECORD_BYTES = 8192  # CONSOLE_EXT_LOG_MAX: one read(2) gives one record
MOST_RECORDS = 200_000
JOURNAL_LINES = 300
JOURNAL_SECONDS = 2.0
MOST_JOURNAL = 1 << 20


def kernel_log() -> bytes:
    """Return the last lines of the kernel's log as `dmesg -r` prints them, in seconds since the boot."""
    lines: deque[bytes] = deque(maxlen=KMSG_LINES)
    descriptor = os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        with contextlib.suppress(BlockingIOError):  # that is its end
            for _ in range(MOST_RECORDS):
                with contextlib.suppress(BrokenPipeError):  # records were overwritten while we read: go on after them
                    lines.append(kernel_line(os.read(descriptor, RECORD_BYTES)))
    finally:
        os.close(descriptor)
    return b"".join(lines)


def kernel_line(record: bytes) -> bytes:
    """Rewrite one record of /dev/kmsg (`PRIORITY,SEQUENCE,MICROSECONDS,FLAGS;TEXT`, continuation lines after it)."""
    head, semicolon, rest = record.partition(b";")
    fields = head.split(b",")
    if not semicolon or len(fields) < 3 or not fields[0].isdigit() or not fields[2].isdigit():
        return record if record.endswith(b"\n") else record + b"\n"
    seconds, micros = divmod(int(fields[2]), 1_000_000)
    text = rest.partition(b"\n")[0]
    return b"<%d>[%5d.%06d] %b\n" % (int(fields[0]) & 7, seconds, micros, text)


def journal(units: Iterable[str]) -> list[SectionRead]:
    """Return reads of what the journal holds of the VM (Proxmox logs QEMU's stderr as QEMU), and of its tail."""
    tail = ("journalctl", "-n", str(JOURNAL_LINES), "-o", "short-iso-precise", "--no-pager")
    matches = [f"{field}={unit}" for unit in units for field in ("_SYSTEMD_UNIT", "UNIT", "OBJECT_SYSTEMD_UNIT")]
    own = (*tail, "SYSLOG_IDENTIFIER=QEMU", *(word for match in matches for word in ("+", match)))
    return [
        SectionRead(
            " ".join(words),
            partial(output, words, seconds=JOURNAL_SECONDS, most=MOST_JOURNAL),
            "the journal",
            JOURNAL_SECONDS + 1,
        )
        for words in (own, tail)
    ]
