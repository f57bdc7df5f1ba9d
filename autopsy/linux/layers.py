"""What a block device is made of, as sysfs tells it: down to the files that loop devices keep their data in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from autopsy.dataclass import dataclass

BLOCK = Path("/sys/dev/block")
DELETED = " (deleted)"
MOST_DEVICES = 64


NAMES = Path("/sys/class/block")


def number_of(name: str, names: Path = NAMES) -> str:
    """Return a block device's number as MAJ:MIN by its name in /dev, empty where there is none; no node is opened."""
    if name.startswith("."):
        return ""
    with suppress(OSError, ValueError):
        return (names / name.replace("/", "!") / "dev").read_text().strip()
    return ""


class MoreLayers(Exception):
    """A block device is made of more others than are looked at."""


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop device below a block device, with the file that it keeps its data in, as the host names it."""

    name: str
    file: str


def loops_below(number: str, block: Path = BLOCK) -> Iterator[Loop]:
    """Yield the loop devices that a block device, given as MAJ:MIN, is made of, itself among them.

    Raises:
        MoreLayers: not all were looked at.
    """
    seen: set[str] = set()
    left = [number]
    while left and len(seen) < MOST_DEVICES:
        with suppress(OSError):
            folder = (block / left.pop()).resolve(strict=True)
            if folder.name in seen:
                continue
            seen.add(folder.name)
            if (folder / "partition").exists():
                left.append((folder.parent / "dev").read_text().strip())
            with suppress(OSError):
                left += [
                    (folder / "slaves" / name / "dev").read_text().strip() for name in os.listdir(folder / "slaves")
                ]
            with suppress(OSError):
                backing = (folder / "loop/backing_file").read_bytes().decode("utf-8", "replace").rstrip("\n")
                yield Loop(folder.name, backing.removesuffix(DELETED))
    if left:
        raise MoreLayers
