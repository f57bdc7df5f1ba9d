"""What to do next about each signature, and what a kill makes unknowable for good."""
# ruff: noqa: E501 - sentences for people, one a line, as the runbooks have them

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Advice:
    """Three next steps, in order, and the questions that only the living process can answer. {pid}, {name} are filled in."""

    steps: tuple[str, str, str]
    lost: tuple[str, ...] = ()


UNKNOWN = Advice(
    (
        "Capture again with what is missing: as root, with gdb installed, without --fast, and with a second exposure",
        "Install QEMU's debug symbols and run `autopsy examine BUNDLE`: the frozen core is in the bundle, the VM is not needed",
        "Compare with a capture of a healthy VM of the same kind: `autopsy diff A B`",
    ),
)

ADVICE = MappingProxyType(
    {
        "healthy": Advice(
            (
                "If the guest hangs, look inside it: its console, its agent, its own log",
                "If it hung a moment ago, capture again while it hangs",
                "Look at what the host recorded before the capture: the RRD of Proxmox, Prometheus, the journal",
            ),
        ),
    }
)
