"""What can still be taken of a VM that ended by itself: the end of its log, the kernel's words, what it left behind."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from functools import partial

from autopsy.bundle import layout
from autopsy.bundle.sections import Section, parse
from autopsy.capture.host import kernel_log, vm_files
from autopsy.capture.host.own_log import must_be_own, readable
from autopsy.capture.reading.programs import output
from autopsy.capture.reading.reader import ReadFailures, SectionRead, Truncated, Unreadable, store, take
from autopsy.capture.staging.staging import Staging
from autopsy.capture.step import Deadline, Options, Outcome, Scene
from autopsy.files.plain import open_plain
from autopsy.linux.child import ChildFailed, ChildTimedOut, in_child
from autopsy.target.target import Target

SECONDS = 6.0
JOURNAL_SECONDS = 2.0
INODE = re.compile(rb"^ino:\s*(\d+)$", re.MULTILINE)
MOUNT = re.compile(rb"^mnt_id:\s*(\d+)$", re.MULTILINE)
DELETED = b" (deleted)"


def take_what_is_left(target: Target, options: Options, staging: Staging) -> None:
    """Collect it into evidence/end/, in a child that may be abandoned; what went wrong is noted."""
    staging.folder(layout.END)
    scene = Scene(target, options, staging.work, layout.END, Deadline(SECONDS))

    def work() -> bytes:
        return collect_aftermath(scene).why.encode()

    try:
        trouble = in_child(work, SECONDS + 1).decode("utf-8", "replace")
    except (ChildTimedOut, ChildFailed) as error:
        trouble = f"not all that the VM left could be read: {error}"
    staging.notes += filter(None, [trouble])
    staging.settle()


def collect_aftermath(scene: Scene) -> Outcome:
    """Take it, the surest first. Nothing of it is read through /proc/PID, whose number may be another's by now."""
    trouble = ReadFailures()
    logs = take(_log(scene), scene.deadline, trouble).values()
    if log := next((section.data for section in logs if section.data), b""):
        scene.write(layout.VM_LOG, log)
    kernel = take([SectionRead(kernel_log.KMSG, kernel_log.kernel_log, seconds=2)], scene.deadline, trouble)
    if lines := b"".join(section.data for section in kernel.values()):
        scene.write(layout.DMESG, lines)
    store(scene, layout.LEFT, _left(scene), trouble)
    store(scene, layout.JOURNAL, _journal(scene.target.pid), trouble)
    return trouble.outcome()


def _log(scene: Scene) -> Iterator[SectionRead]:
    record = scene.target.record
    root = record.domain.root if record.domain else ""
    yield from vm_files.managers_log(vm_files.known_name(record), record.manager, root)
    table = {section.name: section for section in parse(scene.earlier(layout.WITNESS, layout.FDS))}
    tasks = {section.name: section for section in parse(scene.earlier(layout.WITNESS, layout.TASKS))}
    status = tasks["status"].data if "status" in tasks else b""
    for number in (2, 1):
        if (read := _own_stream(table, number, status)) is not None:
            yield read


def _own_stream(table: Mapping[str, Section], number: int, status: bytes) -> SectionRead | None:
    """Return a read of the file that a descriptor led to, where enough is known of it to know it again.

    `status` is what /proc/PID/status told while the process lived: it may have known no more of another's file than to
    write to it.
    """
    link, info = table.get(f"fd/{number}"), table.get(f"fdinfo/{number}")
    if link is None or info is None or not link.data.startswith(b"/") or link.data.endswith(DELETED):
        return None
    inode, mount = INODE.search(info.data), MOUNT.search(info.data)  # `ino` since Linux 5.14
    if inode is None or mount is None or not readable(info.data):
        return None
    return SectionRead(f"fd/{number}", partial(_same_file, link.data, int(inode[1]), int(mount[1]), status))


def _same_file(path: bytes, inode: int, mount: int, status: bytes) -> bytes | Truncated:
    """Return the tail of a file, if it is the one that QEMU had open: its path alone may lead anywhere by now."""
    descriptor = open_plain(os.fsdecode(path))
    try:
        here = MOUNT.search(_info(descriptor))
        if os.fstat(descriptor).st_ino != inode or here is None or int(here[1]) != mount:
            raise Unreadable("another file is at its path")
        must_be_own(descriptor, path, status)
        return vm_files.tail(descriptor)
    finally:
        os.close(descriptor)


def _info(descriptor: int) -> bytes:
    with open(f"/proc/self/fdinfo/{descriptor}", "rb") as stream:
        return stream.read()


def _left(scene: Scene) -> Iterator[SectionRead]:
    """Yield a read for each socket and pidfile of the VM's own: `still there`, or ENOENT."""
    own = [monitor.reachable for monitor in scene.target.record.monitors if monitor.transport == "unix"]
    own.append(scene.target.process.option("pidfile"))
    for path in dict.fromkeys(own):
        if path.startswith("/") and not path.startswith("/proc/"):
            yield SectionRead(path, partial(_there, path))


def _there(path: str) -> bytes:
    os.lstat(path)
    return b"still there\n"


def _journal(pid: int) -> list[SectionRead]:
    """Return reads of what systemd-coredump and the kernel's own log in the journal say of that process."""
    lines = ("journalctl", "-n", "50", "-o", "short-iso-precise", "--no-pager", "--since", "-5min")
    queries = ((*lines, f"COREDUMP_PID={pid}"), (*lines, f"_PID={pid}"))
    return [
        SectionRead(
            " ".join(query),
            partial(output, query, seconds=JOURNAL_SECONDS, most=kernel_log.MOST_JOURNAL),
            "the journal",
            JOURNAL_SECONDS + 1,
        )
        for query in queries
    ]
