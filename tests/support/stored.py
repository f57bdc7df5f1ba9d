"""The stored captures of fixtures/, for tests."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from autopsy.bundle.reader import open_bundle
from autopsy.replay import cases

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"

FOREIGN = re.compile(
    rb"(?<![\w.])/(?:work|opt/lab|root|home(?!/operator))/\w|/(?:var/tmp|tmp|mnt)/(?!other\b)\w|"
    rb"boot_id: [1-9a-f]|-----BEGIN"
)


@dataclass(frozen=True, slots=True)
class Stored:
    """One stored capture: its folder, and the bundle in it."""

    home: Path
    bundle: Path


def _cases() -> tuple[Stored, ...]:
    homes = sorted(path.parent for path in FIXTURES.glob(f"*/{cases.EXPECTED}"))
    return tuple(Stored(home, next(home.glob("*.tar.zst"), home / cases.UNPACKED)) for home in homes)


CASES = _cases()


@cache
def files(bundle: Path) -> dict[str, bytes]:
    """Return every file of a stored capture, the manifest too."""
    opened = open_bundle(bundle)
    return {name: opened.read(name) for name in opened.names()}


def right() -> Stored:
    """Return a stored capture that is a tarball and is stuck in a throttle group."""
    return next(case for case in CASES if case.home.name.startswith("lsi-throttle"))
