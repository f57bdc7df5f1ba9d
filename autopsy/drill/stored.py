"""Drills that not every host can have: a stored capture of the real thing is walked through instead."""

from __future__ import annotations

from pathlib import Path

from autopsy.dataclass import dataclass
from autopsy.resources import resource

BUNDLE = "bundle.tar.zst"


@dataclass(frozen=True, slots=True)
class StoredDrill:
    """A wedge that needs a certain QEMU; `case` is the folder of its stored capture."""

    name: str
    description: str
    needs: str
    case: str

    @property
    def bundle(self) -> Path:
        """Return where the stored capture is, in a checkout or in the package."""
        return resource(f"fixtures/{self.case}") / BUNDLE


STORED_DRILLS = (
    StoredDrill(
        "throttle-deadlock",
        "a thread waits for a throttle group's mutex that it holds itself",
        "QEMU 9.0 to 10.0.8, 10.1.0 to 10.2.1, and luck: a stored capture is shown",
        "throttle-deadlock-10.0.2-debug",
    ),
)


def stored_drill(name: str) -> StoredDrill | None:
    """Return the stored drill of that name, None where there is none."""
    return next((drill for drill in STORED_DRILLS if drill.name == name), None)
