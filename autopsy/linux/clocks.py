"""One moment on every clock, and the host it was taken on."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime

import psutil

from autopsy.bundle.manifest import Clocks, Host


def now() -> Clocks:
    """Return this moment in UTC, the host's zone and CLOCK_MONOTONIC."""
    utc = datetime.now(UTC)
    local = utc.astimezone()
    return Clocks(
        utc=utc.isoformat(timespec="microseconds"),
        zone=f"{local:%z} {local.tzname()}",
        monotonic_ns=time.monotonic_ns(),
    )


def host() -> Host:
    """Return what the kernel says of this machine."""
    uname = os.uname()
    return Host(
        name=uname.nodename,
        kernel=uname.release,
        architecture=uname.machine,
        distribution=_distribution(),
        page_size=os.sysconf("SC_PAGE_SIZE"),
        cpus=psutil.cpu_count() or 1,
        boot_id=_first_line("/proc/sys/kernel/random/boot_id"),
    )


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.readline(4096).strip()
    except OSError:
        return ""


def _distribution() -> str:
    try:
        with open("/etc/os-release", encoding="utf-8", errors="replace") as stream:
            for line in stream:
                key, _, value = line.partition("=")
                if key == "PRETTY_NAME":
                    return value.strip().strip('"')
    except OSError:
        pass
    return ""
