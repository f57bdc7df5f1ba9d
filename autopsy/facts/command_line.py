"""QEMU's command line: which disks, nodes, devices and groups it asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import field
from itertools import pairwise
from typing import Any

from autopsy.bundle import layout
from autopsy.dataclass import dataclass
from autopsy.facts.cite import Cite
from autopsy.facts.evidence import Evidence

Options = Mapping[str, Any]
CMDLINE = layout.evidence(layout.WITNESS, layout.CMDLINE)


@dataclass(frozen=True, slots=True)
class CommandLine:
    """The options that speak of storage, each as a nested mapping with dotted keys unfolded."""

    arguments: tuple[str, ...] = ()
    drives: tuple[Options, ...] = ()
    blockdevs: tuple[Options, ...] = ()
    devices: tuple[Options, ...] = ()
    objects: tuple[Options, ...] = ()
    chardevs: tuple[Options, ...] = ()
    tpmdevs: tuple[Options, ...] = ()
    exports: tuple[Options, ...] = ()
    machines: tuple[Options, ...] = ()
    cite: Cite = field(default_factory=lambda: Cite(CMDLINE))

    def device_of(self, *drives: str) -> Options | None:
        """Return the device that uses one of these drives or nodes."""
        return next((device for device in self.devices if device.get("drive") in drives and device["drive"]), None)

    def firmware_nodes(self) -> tuple[str, ...]:
        """Return the nodes that a machine keeps its firmware and that one's variables in."""
        names = (string(machine, key) for machine in self.machines for key in ("pflash0", "pflash1"))
        return tuple(dict.fromkeys(filter(None, names)))

    def device(self, identity: str) -> Options | None:
        """Return the device with an id."""
        return next((device for device in self.devices if identity and device.get("id") == identity), None)


def read_command_line(evidence: Evidence) -> CommandLine:
    """Read the command line, empty where it was not taken."""
    data = evidence.read(CMDLINE).rstrip(b"\0")
    if not data:
        return CommandLine()
    arguments = tuple(word.decode("utf-8", "replace") for word in data.split(b"\0"))
    first = {
        "device": "driver",
        "object": "qom-type",
        "blockdev": "driver",
        "drive": "file",
        "chardev": "backend",
        "tpmdev": "type",
        "export": "type",
        "machine": "type",
        "M": "type",
    }
    options: dict[str, list[Options]] = {name: [] for name in first}
    for name, value in pairs(arguments):
        if name in options:
            options[name].append(parse(value, first[name]))
    return CommandLine(
        arguments,
        drives=tuple(options["drive"]),
        blockdevs=tuple(options["blockdev"]),
        devices=tuple(options["device"]),
        objects=tuple(options["object"]),
        chardevs=tuple(options["chardev"]),
        tpmdevs=tuple(options["tpmdev"]),
        exports=tuple(options["export"]),
        machines=(*options["machine"], *options["M"]),
    )


def pairs(arguments: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield each option with the word after it."""
    for name, value in pairwise(arguments):
        if name.startswith("-"):
            yield name.lstrip("-"), value
    for word in arguments:  # as a storage daemon takes them, too
        name, equals, value = word.partition("=")
        if name.startswith("--") and equals:
            yield name.lstrip("-"), value


def parse(value: str, first: str) -> Options:
    """Read one option in JSON or as key=value pairs, in which `,,` is a comma and the first key may be left out."""
    if value.startswith("{"):
        try:
            decoded = json.loads(value)
        except (ValueError, RecursionError):
            return {}
        return _unfold(decoded) if isinstance(decoded, dict) else {}
    flat: dict[str, Any] = {}
    for index, part in enumerate(value.replace(",,", "\0").split(",")):
        key, equals, word = part.replace("\0", ",").partition("=")
        if not equals and index == 0:
            key, word = first, key
        flat.setdefault(key, word if equals or index == 0 else "on")
    return _unfold(flat)


def _unfold(flat: Mapping[str, Any]) -> dict[str, Any]:
    unfolded: dict[str, Any] = {}
    for key, value in flat.items():
        parts = key.split(".")
        place = unfolded
        for part in parts[:-1]:
            below = place.setdefault(part, {})
            if not isinstance(below, dict):
                below = place[part] = {"": below}
            place = below
        place[parts[-1]] = _unfold(value) if isinstance(value, dict) else value
    return unfolded


def string(options: Options, *keys: str) -> str:
    """Return the text at a path of keys, empty where there is none."""
    place: Any = options
    for key in keys:
        if not isinstance(place, Mapping):
            return ""
        place = place.get(key)
    return place if isinstance(place, str) else "" if place is None or isinstance(place, Mapping | list) else str(place)
