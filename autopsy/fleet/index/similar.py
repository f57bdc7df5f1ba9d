"""Which bundles are most like one that the index has."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from autopsy.errors import UsageError
from autopsy.fleet.index.query import ask
from autopsy.fleet.index.questions import ROW, Question, similar_to
from autopsy.fleet.index.row import FleetRow

DIGEST = re.compile(r"[0-9a-f]{6,64}")


def question_of(files: Sequence[Path], digest: str, analyzer: str = "") -> Question:
    """Return the question for a bundle by the beginning of its SHA-256.

    Raises:
        UsageError: it means none, or several.
    """
    rows = ask(files, ROW, {"bundle": digest}, analyzer=analyzer, once=False).rows if DIGEST.fullmatch(digest) else ()
    if len(rows) != 1:
        why = "there is no such file, and no such row" if not rows else "is the beginning of several digests"
        raise UsageError(digest, why, remedy="give a bundle's file, or its SHA-256 as the index has it")
    ((bundle, cluster, named, raw),) = rows
    row = FleetRow(
        bundle=bundle, stamp="", size=0, analyzer="", cluster=cluster, stacks_named=tuple(named), stacks_raw=tuple(raw)
    )
    return similar_to(row)
