"""The numbers that threads have in their own PID namespace, which are not those that the host knows them by.

QEMU writes its own: glibc's mutexes hold `gettid()`, and QMP tells `thread-id`. In a container they mean other threads
to whoever reads them from outside.
"""

from __future__ import annotations

import re
from dataclasses import field

from autopsy.bundle import sections
from autopsy.dataclass import dataclass

STATUS = re.compile(r"task/(\d{1,9})/status")
NSPID = re.compile(rb"^NSpid:((?:\s+\d{1,9})+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Numbers:
    """A process's threads by the number that they know themselves by; empty where that is the host's."""

    inner: dict[int, int] = field(default_factory=dict)

    def tid(self, number: int) -> int:
        """Return which thread a number of QEMU's own means, 0 where it means none that was seen."""
        return self.inner.get(number, 0) if self.inner else number


def numbers(tasks: bytes) -> Numbers:
    """Read the sections task/<tid>/status of a tasks.txt."""
    outer: dict[int, int] = {}
    nested = False
    for section in sections.parse(tasks):
        name = STATUS.fullmatch(section.name)
        line = NSPID.search(section.data) if name and not section.error else None
        if name and line:
            levels = line[1].split()
            nested = nested or len(levels) > 1
            outer[int(levels[-1])] = int(name[1])
    return Numbers(outer if nested else {})
