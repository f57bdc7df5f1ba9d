"""How large a core may be where it is to be written: a host that runs out of memory takes more VMs with it than one."""

from __future__ import annotations

import os
from pathlib import Path

from autopsy.capture.freeze.choose_pages import CAP_BYTES
from autopsy.linux.spare_memory import lies_in_memory, spare_memory

REST = 32 << 20  # of the room: what else is stored, and what gdb and the heap walk need meanwhile
LEAST = 8 << 20  # a core of stacks and data is worth as much


def room_for_core(folder: Path) -> int:
    """Return how many bytes of memory may be taken into a core that is written below `folder`.

    They are in memory once: a part leaves the copy as it reaches the file.
    """
    there = os.statvfs(folder)
    room = min(there.f_bavail * there.f_frsize - REST, CAP_BYTES)
    spare = spare_memory() - (REST if lies_in_memory(folder) else 0)
    return max(LEAST, min(room, spare))
