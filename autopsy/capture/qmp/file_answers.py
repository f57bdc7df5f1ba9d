"""Says whether each file that the VM has open tells its size at once: QEMU asks for it in its main loop.

A disk that nobody reads or writes shows no thread that sleeps, however dead its server is, until somebody asks.
"""

from __future__ import annotations

import errno
import mmap

import msgspec

from autopsy import text
from autopsy.bundle.failing_file import FailingFile
from autopsy.capture.reading.procfs import held
from autopsy.linux.child import ChildFailed, ChildTimedOut, in_child
from autopsy.linux.statx import ask_server
from autopsy.target.target import Target

SECONDS = 2.0  # a server far away and busy has answered by then
PATH = 4096  # bytes of what the kernel calls it
NO_FILES = (b"/dev/", b"/proc/", b"/sys/", b"/memfd:", b"/[")
MOST_FAILING = 16
# What a question for a file that is open ends with where its server is gone, or its storage broken; a FUSE daemon may
# let nobody but its own user ask, and that says nothing.
FAILURES = frozenset({"ENOTCONN", "ESHUTDOWN", "ECONNABORTED", "EIO", "ESTALE", "ENXIO", "ENODEV", "ETIMEDOUT"})


def unanswered(target: Target) -> tuple[str, tuple[FailingFile, ...]]:
    """Return the file that did not answer in time, as a reason not to ask, empty where all did; and those that failed.

    The question is put by a child of ours, which can be given up, and of the very file, whatever its path means now.
    """
    with mmap.mmap(-1, PATH) as asked:
        try:
            answers = in_child(lambda: _ask_each(target, asked), SECONDS)
            return "", msgspec.json.decode(answers, type=tuple[FailingFile, ...])
        except ChildTimedOut:
            name = text.printable(asked[:].rstrip(b"\0").decode("utf-8", "replace"))
            # Without a name none was asked yet: that is a starved host's child, and says nothing of any file.
            return f"{name} does not tell its size: what it lies on does not answer" if name else "", ()
        except ChildFailed:  # the process has ended, or is not ours to look at: whoever talks to it will say so
            return "", ()


def _ask_each(target: Target, asked: mmap.mmap) -> bytes:
    failing: list[FailingFile] = []
    with held(target) as process:
        for descriptor in process.numbers("fd"):
            name = b""
            try:
                name = process.link(f"fd/{descriptor}")
                if name.startswith(b"/") and not name.startswith(NO_FILES):
                    asked[:] = name[:PATH].ljust(PATH, b"\0")
                    ask_server(process.folder, f"fd/{descriptor}")
            except OSError as error:  # closed meanwhile, or not ours to ask; and an error is an answer
                if (kind := errno.errorcode.get(error.errno or 0, "")) in FAILURES and len(failing) < MOST_FAILING:
                    failing.append(FailingFile(path=name.decode("utf-8", "replace"), error=kind))
    return msgspec.json.encode(failing)
