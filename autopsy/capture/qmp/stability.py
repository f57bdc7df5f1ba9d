"""Which questions QEMU promises nothing about, and which have harmed one."""

from __future__ import annotations

from autopsy.capture.qmp.commands import Qemu, Version
from autopsy.dataclass import dataclass

PREFIX = "x-"
# No question that is asked without --ask-unstable is marked in 7.2, 10.0 or 11.1 (which each QEMU of the lab is asked),
# nor could any be before: the mark exists since QEMU commit 57df0dff1a ("qapi: Extend -compat to set policy for
# unstable interfaces") (in v6.2).
LAST_UNMARKED = Version(11, 1, 49)
BETWEEN_RELEASES = 50  # the micro version of what was built on the way to the next release, and later


@dataclass(frozen=True, slots=True)
class Harm:
    """A question that has harmed a QEMU.

    Nobody knows since when it harms: every version counts as harmed, but for the series in which it was tried, many
    times and on every kind of disk, without harm.
    """

    question: str
    unharmed: tuple[tuple[int, int], ...]
    happened: str


HARMFUL = (
    Harm(
        "x-query-virtio-status",
        ((7, 2), (10, 0)),
        "it aborted QEMU 11.1.3 (SIGABRT, qapi/qapi-visit-core.c:52: visit_start_struct)",
    ),
)


def is_unstable(question: str, qemu: Qemu) -> bool:
    """Return whether QEMU may change or break the question: its name says so, or its schema does."""
    return question.startswith(PREFIX) or question in qemu.marked


def known_unmarked(qemu: Qemu) -> str:
    """Return why the schema need not be asked for what it marks, empty when it must be.

    It is 200 KB of text: the main loop serves nobody else for 20 ms, and QEMU's heap stays larger by 20 MB ever after.
    A version that was not told, or that is newer than all that were tried, is in doubt.
    """
    version = qemu.version
    if version == Version() or version > LAST_UNMARKED or version.micro >= BETWEEN_RELEASES:
        return ""
    return f"QEMU {version.major}.{version.minor} is known to mark none of these questions as unstable"


def harm(question: str, qemu: Qemu) -> str:
    """Return what the question has done to a QEMU, empty when this one is known to be spared, or it never did any.

    A version that was not told is in doubt, and doubt counts as harm.
    """
    version = (qemu.version.major, qemu.version.minor)
    return next(
        (known.happened for known in HARMFUL if known.question == question and version not in known.unharmed),
        "",
    )


def why_not(question: str, qemu: Qemu, *, unstable_too: bool) -> str:
    """Return why the question is not asked of this QEMU, empty when it may be."""
    if happened := harm(question, qemu):
        return f"{happened}, and nobody knows which others"
    if not unstable_too and is_unstable(question, qemu):
        return "QEMU marks it as unstable: --ask-unstable asks it, last of all"
    return ""
