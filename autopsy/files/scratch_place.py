"""Where temporary folders go: to a place that exists, for none of the system's is ours to make."""

from __future__ import annotations

import os
from pathlib import Path

from autopsy.errors import NotStored
from autopsy.files import private

# Larger than a tmpfs may hold comes first.
PLACES = ("/var/tmp", "/var/lib/autopsy", "/tmp")  # noqa: S108 - what is made there is a private folder


def scratch_place() -> str:
    """Return the folder that TMPDIR names, else the first of the usual ones that is there.

    A folder whose owner could take ours away, and lay another in its place, is none.

    Raises:
        NotStored: there is none that can be written to.
    """
    named = os.environ.get("TMPDIR", "")
    for place in (named,) if named else PLACES:
        if Path(place).is_dir() and os.access(place, os.W_OK | os.X_OK) and private.keeps(Path(place)):
            return place
    raise NotStored(
        named or ", ".join(PLACES),
        "no temporary folder can be made there",
        remedy="set TMPDIR to a folder that you may write to, and nobody else owns, with some hundred MB of room",
    )
