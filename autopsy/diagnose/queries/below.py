"""Follows a file system down through loop devices and their files, to a program that answers for the last of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from autopsy.dataclass import dataclass
from autopsy.diagnose.diagnosis import Claim
from autopsy.diagnose.signature import claim
from autopsy.facts.cite import Known
from autopsy.facts.model.facts import Facts, FuseMount, LayerFact, MountFact, PeerFact
from autopsy.facts.subjects import HostDevice


@dataclass(frozen=True, slots=True)
class Below:
    """The layers below a mount, from the top, and the FUSE file system at their end, if it is one."""

    layers: tuple[LayerFact, ...]
    served: FuseMount | None

    @property
    def holds(self) -> bool:
        """Return whether the program at the end holds up what lies above: it was asked, or cannot answer."""
        return self.served is not None and bool(self.served.waiting or is_stopped(self.served))


def own_daemons(served: FuseMount) -> tuple[PeerFact, ...]:
    """Return the programs that are known to serve a FUSE file system."""
    return served.daemons if served.sure or len(served.daemons) == 1 else ()


def is_stopped(served: FuseMount) -> bool:
    """Tell whether none of those programs runs."""
    daemons = own_daemons(served)
    return bool(daemons) and all(daemon.state in {"T", "t"} for daemon in daemons)


def below(facts: Facts, mount: MountFact) -> Below:
    """Return what a mount is stacked on; no ring of layers is followed twice."""
    layers: list[LayerFact] = []
    device = mount.device
    while device:
        layer = next((lower for lower in facts.layers if lower.above == device and lower not in layers), None)
        if layer is None:
            break
        layers.append(layer)
        device = layer.mount.device
    return Below(tuple(layers), served_at(facts, layers[-1].mount) if layers else None)


def about_devices(facts: Facts, devices: Iterable[HostDevice]) -> Iterator[Claim]:
    """Say where a loop device keeps its data; whether that holds it up is not known by that."""
    for layer in layers_of(facts, devices):
        words = f"Block device {layer.loop} keeps its data in {layer.file}, on {layer.mount.path}"
        yield claim(f"{words} ({layer.mount.fstype}).", layer.cite)


def layers_of(facts: Facts, devices: Iterable[HostDevice]) -> tuple[LayerFact, ...]:
    """Return the layer right below each of these devices that is a loop device."""
    names = {device.name for device in devices}
    return tuple(layer for layer in facts.layers if layer.loop in names)


def stands_below(facts: Facts, layer: LayerFact) -> bool:
    """Tell whether requests of a loop device came to none of the devices below: the file system between has them."""
    counted = facts.host.block_devices.value if isinstance(facts.host.block_devices, Known) else ()
    in_flight = {device.name: device.in_flight for device in counted}
    lower = layer.mount.source.removeprefix("/dev/").removeprefix("mapper/")
    return in_flight.get(layer.loop, 0) > 0 and in_flight.get(lower) == 0


def served_at(facts: Facts, mount: MountFact) -> FuseMount | None:
    """Return the FUSE file system of a mount, by whose daemons it is served."""
    fuse_mounts = facts.fuse.value if isinstance(facts.fuse, Known) else ()
    return next((fuse_mount for fuse_mount in fuse_mounts if fuse_mount.path == mount.path), None)
