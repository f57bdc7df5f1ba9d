"""The files that lie below the target's file systems, where those are on loop devices, and the mounts of such files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial

import msgspec

from autopsy.bundle.records import LoopLayer
from autopsy.bundle.sections import Section
from autopsy.capture.reading.procfs import read_file
from autopsy.capture.reading.reader import ReadFailures, SectionFile, SectionRead, Truncated, as_far_as_read, take
from autopsy.capture.step import Scene
from autopsy.linux.layers import MoreLayers, loops_below, number_of
from autopsy.linux.mounts import Mount, mount_around, mounts_in_use, mounts_of

SEARCH_SECONDS = 1.0
MOST_LAYERS = 32
DEV = b"/dev/"
MOST_TABLE = 4 << 20


def collect_layers(
    scene: Scene, descriptors: Mapping[str, Section], stored: SectionFile, trouble: ReadFailures
) -> tuple[Mount, ...]:
    """Store a section `layer/<number>` for each, and return the mounts that such files lie on.

    It is of the host's own mounts that a loop device's file is told: no path is looked at, for that could hang.
    """
    numbers = tuple(dict.fromkeys(mount.device for mount in mounts_in_use(descriptors)))
    numbers = tuple(number for number in numbers if not number.startswith("0:"))
    links = (section.data for name, section in descriptors.items() if name.startswith("fd/") and not section.error)
    nodes = dict.fromkeys(os.fsdecode(link.rstrip(b"\n")) for link in links if link.startswith(DEV))
    devices = tuple(node.removeprefix("/dev/") for node in nodes)[:MOST_LAYERS]
    if not (numbers or devices):
        return ()
    asked = take(
        [SectionRead("layers", partial(_walk, numbers, devices), seconds=SEARCH_SECONDS)], scene.deadline, trouble
    )
    answer = asked.pop("layers")
    layers = msgspec.json.decode(answer.data or b"[]", type=tuple[LoopLayer, ...])
    stored.append([Section(f"layer/{number}", msgspec.json.encode(layer)) for number, layer in enumerate(layers)])
    stored.append(asked.values())
    return tuple(mounts_of("\n".join(dict.fromkeys(layer.mount for layer in layers)).encode()).values())


def _walk(numbers: tuple[str, ...], devices: tuple[str, ...]) -> bytes | Truncated:
    """Be the search, in a reader; return Layer[] as JSON."""
    numbers = tuple(dict.fromkeys((*numbers, *filter(None, map(number_of, devices)))))
    layers: list[LoopLayer] = []
    left = list(numbers)
    seen = set(left)
    cut = False
    table = _own_mounts()
    while left and len(layers) < MOST_LAYERS:
        number = left.pop(0)
        try:
            for loop in loops_below(number):
                mount = mount_around(table, loop.file)
                if mount is None:
                    continue
                line = os.fsencode(mount.line).decode("utf-8", "replace")
                layers.append(LoopLayer(above=number, loop=loop.name, file=loop.file, mount=line))
                if mount.device not in seen:
                    seen.add(mount.device)
                    left.append(mount.device)
        except MoreLayers:
            cut = True
    data = msgspec.json.encode(layers)
    return Truncated(data, "not all devices were looked below") if cut or left else data


def _own_mounts() -> tuple[Mount, ...]:
    raw = read_file("/proc/self/mountinfo", MOST_TABLE)
    return tuple(mounts_of(as_far_as_read(raw)).values())
