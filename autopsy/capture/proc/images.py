"""Which file each image's name leads to for QEMU: by device and inode, for it may know it by a symbolic link."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from functools import partial

from autopsy.bundle import layout
from autopsy.bundle.sections import REST, Section
from autopsy.capture.reading.procfs import ProcDirectory
from autopsy.capture.reading.reader import ReadFailures, SectionRead, Unreadable, store
from autopsy.capture.step import Scene
from autopsy.linux.rights import look_as

MOST_IMAGES = 256
SECONDS = 1.0
# `filename=/a,`, `file=/a`, and JSON's "file": "/a".
FILE = re.compile(rb'file(?:name)?"?[=:]\s*"?(/(?:[^,"\0]|,,)+)')


def collect_images(scene: Scene, process: ProcDirectory, table: Mapping[str, Section], trouble: ReadFailures) -> None:
    """Store `images.txt`: a section `image/<n>` for each image whose name is no open file's own.

    QEMU has each of them open; a file system that hangs costs the child that asks it, and this file. Whoever runs the
    VM chose the names: nothing is told of a file that the process itself could not find.
    """
    status = process.small("status")
    targets = {section.data for name, section in table.items() if name.startswith("fd/")}
    paths = [path for path in dict.fromkeys(_named(scene)) if os.fsencode(path) not in targets]
    reads = [
        SectionRead(
            f"image/{number}",
            partial(_identity, path, status),
            fate=os.path.dirname(path),
            seconds=SECONDS,
            alters=True,
        )
        for number, path in enumerate(paths[:MOST_IMAGES])
    ]
    if (left := len(paths) - MOST_IMAGES) > 0:
        reads.append(SectionRead(f"image{REST}", partial(_not_looked_for, left)))
    if reads:
        store(scene, layout.IMAGES, reads, trouble)


def _named(scene: Scene) -> Iterator[str]:
    """Yield the files that QEMU and its command line name; what is of another namespace leads to no open file of it."""
    sources = (scene.earlier(layout.WITNESS, layout.CMDLINE), scene.earlier(layout.QUERY_BLOCK, layout.QMP))
    for match in FILE.finditer(b"\0".join(sources)):
        path = os.fsdecode(match[1].replace(b",,", b","))
        if not path.startswith("/dev/fdset/"):
            yield path


def _not_looked_for(left: int) -> bytes:
    raise Unreadable(f"{left} more were not looked for")


def _identity(path: str, status: bytes) -> bytes:
    look_as(status)
    file = os.stat(path)
    device = f"{os.major(file.st_dev)}:{os.minor(file.st_dev)}"
    return f"{device} {file.st_ino} ".encode() + os.fsencode(path)
