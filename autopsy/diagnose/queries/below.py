"""Follows a file system down through loop devices and their files, to a program that answers for the last of them."""

from __future__ import annotations

from autopsy.dataclass import dataclass
from autopsy.facts.cite import Known
from autopsy.facts.model.facts import Facts, FuseMount, LayerFact, MountFact, PeerFact


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
    return bool(daemons) and all(each.state in {"T", "t"} for each in daemons)


def below(facts: Facts, mount: MountFact) -> Below:
    """Return what a mount is stacked on; no ring of layers is followed twice."""
    found: list[LayerFact] = []
    device = mount.device
    while device:
        layer = next((each for each in facts.layers if each.above == device and each not in found), None)
        if layer is None:
            break
        found.append(layer)
        device = layer.mount.device
    return Below(tuple(found), served_at(facts, found[-1].mount) if found else None)


def served_at(facts: Facts, mount: MountFact) -> FuseMount | None:
    """Return the FUSE file system of a mount, by whose daemons it is served."""
    told = facts.fuse.value if isinstance(facts.fuse, Known) else ()
    return next((each for each in told if each.path == mount.path), None)
