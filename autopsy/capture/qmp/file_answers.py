"""Says whether each file that the VM has open tells its size at once: QEMU asks for it in its main loop.

A disk that nobody reads or writes shows no thread that sleeps, however dead its server is, until somebody asks.
"""

from __future__ import annotations

import mmap
from contextlib import suppress

from autopsy import text
from autopsy.capture.reading.procfs import held
from autopsy.linux.child import ChildFailed, ChildTimedOut, in_child
from autopsy.linux.statx import ask_server
from autopsy.target.target import Target

SECONDS = 2.0  # a server far away and busy has answered by then
PATH = 4096  # bytes of what the kernel calls it
NO_FILES = (b"/dev/", b"/proc/", b"/sys/", b"/memfd:", b"/[")


def unanswered(target: Target) -> str:
    """Return the file that did not answer in time, as a reason not to ask; empty where all did.

    The question is put by a child of ours, which can be given up, and of the very file, whatever its path means now.
    """
    with mmap.mmap(-1, PATH) as asked:
        try:
            in_child(lambda: _ask_each(target, asked), SECONDS)
        except ChildTimedOut:
            name = text.printable(asked[:].rstrip(b"\0").decode("utf-8", "replace"))
            # Without a name none was asked yet: that is a starved host's child, and says nothing of any file.
            return f"{name} does not tell its size: what it lies on does not answer" if name else ""
        except ChildFailed:  # the process has ended, or is not ours to look at: whoever talks to it will say so
            return ""
    return ""


def _ask_each(target: Target, asked: mmap.mmap) -> bytes:
    with held(target) as process:
        for descriptor in process.numbers("fd"):
            with suppress(OSError):  # closed meanwhile, or not ours to ask; and an error is an answer
                name = process.link(f"fd/{descriptor}")
                if name.startswith(b"/") and not name.startswith(NO_FILES):
                    asked[:] = name[:PATH].ljust(PATH, b"\0")
                    ask_server(process.folder, f"fd/{descriptor}")
    return b""
