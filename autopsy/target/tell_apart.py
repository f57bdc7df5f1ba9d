"""Helps who mistyped a VM's name, or gave one that several have: near names, and what tells VMs apart."""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Iterable, Mapping

from autopsy.target import identity
from autopsy.target.command_line import Option, settings, vm_name
from autopsy.target.platforms.platform import VmClaim
from autopsy.target.qemu_process import QemuProcess, is_qemu
from autopsy.text import printable

TICKS = os.sysconf("SC_CLK_TCK")
LIKE = 0.6  # of difflib's ratio
MOST = 3
FILES = ("file", "filename", "file.filename")


def near(word: str, processes: Mapping[int, QemuProcess], claims: Iterable[VmClaim]) -> str:
    """Return the names of VMs that are like a word, each with its process; empty where there is none."""
    names = {claim.name: claim.pid for claim in claims}
    for pid, one in processes.items():
        if one.options is not None and is_qemu(one) and (name := vm_name(one.options)):
            names.setdefault(name, pid)
    folded = {name.casefold(): name for name in names}
    typed = word.casefold()
    begin = [name for name in folded if typed and name.startswith(typed)]
    alike = dict.fromkeys((*begin, *difflib.get_close_matches(typed, folded, n=MOST, cutoff=LIKE)))
    nearest = [folded[name] for name in alike][:MOST]
    return " or ".join(f"{printable(name)} (pid {names[name]})" for name in nearest)


def distinction(pid: int, process: QemuProcess) -> str:
    """Return how long a VM runs and the image of its first disk, as far as they are known."""
    parts = []
    try:
        seconds = time.clock_gettime(time.CLOCK_BOOTTIME) - identity.stat_of(f"/proc/{pid}").start_ticks / TICKS
        parts.append(f"up {_span(seconds)}")
    except (OSError, ValueError, IndexError):
        pass  # it has ended meanwhile
    if image := _image(process.options or ()):
        parts.append(printable(image, 120))
    return ", ".join(parts)


def _span(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _image(options: Iterable[Option]) -> str:
    for option in options:
        if option.name in {"drive", "blockdev"}:
            given = settings(option.value)
            for key in FILES:
                if given.get(key, "").startswith("/"):
                    return given[key]
        elif option.name in {"hda", "hdb", "hdc", "hdd"}:
            return option.value
    return ""
