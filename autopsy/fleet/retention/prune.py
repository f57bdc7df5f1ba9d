"""Looks through a place with its index, and removes what its policy does not keep."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from autopsy.fleet.index.parts import digest_in
from autopsy.fleet.index.query import ask
from autopsy.fleet.places.opening import open_place
from autopsy.fleet.retention.decide import SQL, BundleFate, JudgedBundle, decide
from autopsy.fleet.retention.policy import RetentionPolicy
from autopsy.fleet.sending.send import FOLDER


def fates(address: str, index: Sequence[Path], analyzer: str, policy: RetentionPolicy) -> tuple[BundleFate, ...]:
    """Return what becomes of each bundle that was sent to a place; nothing is removed here, and nothing else looked at.

    Raises:
        AutopsyError: the place cannot be listed.
    """
    stored = [file for file in open_place(address).files(FOLDER) if digest_in(file.key)]
    judged = {row[0]: JudgedBundle(*row) for row in ask(index, SQL, analyzer=analyzer).rows}
    return decide(stored, judged, policy, time.time())


def remove(address: str, these: Iterable[BundleFate]) -> None:
    """Remove those that are not kept.

    Raises:
        AutopsyError: one cannot be removed; those before it are.
    """
    place = open_place(address)
    for fate in these:
        if not fate.keep:
            place.remove(fate.file.key)
