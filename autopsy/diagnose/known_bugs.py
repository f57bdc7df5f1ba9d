"""QEMU's known bugs by signature: they tell whether this build has the fix, and never decide a verdict."""

from __future__ import annotations

from autopsy.diagnose.diagnosis import KnownBug
from autopsy.facts.model import Facts


def about(signature: str, facts: Facts) -> tuple[KnownBug, ...]:
    """Return the known bugs that show this signature, with what this build's version says of each."""
    del signature, facts
    return ()
