"""Which file system a descriptor's file is on, told from fdinfo and mountinfo, because stat(2) of a dead one hangs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from autopsy.bundle.sections import Section
from autopsy.dataclass import dataclass

MNT_ID = re.compile(rb"^mnt_id:\s*(\d+)$", re.MULTILINE)
OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/PID/mountinfo.

    `device` is MAJ:MIN of the file system, `root` the folder of it that is mounted, `fds` the target's that lie on it.
    """

    id: int
    device: str
    root: str
    point: str
    kind: str
    source: str
    options: str
    line: str
    fds: tuple[int, ...] = ()

    @property
    def is_fuse(self) -> bool:
        """Return whether a process answers for this file system."""
        return self.kind in {"fuse", "fuseblk", "virtiofs"} or self.kind.startswith("fuse.")


def mounts_of(raw: bytes) -> dict[int, Mount]:
    """Read a mountinfo, by mount id; lines that are damaged are left out."""
    mounts = {}
    for line in raw.decode("utf-8", "surrogateescape").split("\n"):
        left, dash, right = line.partition(" - ")
        place, words = left.split(" "), right.split(" ")
        if dash and len(place) > 5 and len(words) > 1 and place[0].isdecimal():
            mounts[int(place[0])] = Mount(
                id=int(place[0]),
                device=place[2],
                root=_unescaped(place[3]),
                point=_unescaped(place[4]),
                kind=words[0],
                source=_unescaped(words[1]),
                options=words[2] if len(words) > 2 else "",
                line=line,
            )
    return mounts


def mounts_in_use(descriptors: Mapping[str, Section]) -> tuple[Mount, ...]:
    """Return the mounts that the sections of a fds.txt show files of, each with its descriptors."""
    table = descriptors.get("mountinfo")
    mounts = mounts_of(table.data) if table else {}
    fds: dict[int, list[int]] = {}
    for name, section in descriptors.items():
        number = name.removeprefix("fdinfo/")
        link = descriptors.get(f"fd/{number}")
        if (
            name.startswith("fdinfo/")
            and link
            and link.data.startswith(b"/")
            and (match := MNT_ID.search(section.data))
        ):
            fds.setdefault(int(match[1]), []).append(int(number))
    return tuple(replace(mount, fds=tuple(sorted(fds[mount.id]))) for mount in mounts.values() if mount.id in fds)


def mount_at(descriptors: Mapping[str, Section], path: str) -> Mount | None:
    """Return the mount that a path of the target's lies on, by the mountinfo of a fds.txt; links are not followed."""
    table = descriptors.get("mountinfo")
    return mount_around(mounts_of(table.data if table else b"").values(), path)


def mount_around(table: Iterable[Mount], path: str) -> Mount | None:
    """Return the mount that a path lies on, the last one where several are at the same place."""
    above = [mount for mount in table if _is_below(path, mount.point)]
    return max(reversed(above), key=lambda mount: len(mount.point), default=None)


def _is_below(path: str, point: str) -> bool:
    return path == point or path.startswith(point.rstrip("/") + "/")


def _unescaped(word: str) -> str:
    return OCTAL.sub(lambda code: chr(int(code[1], 8)), word)
