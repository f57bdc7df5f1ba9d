"""What the report says before anybody scrolls: a headline, and what to do."""

from __future__ import annotations

import re

from autopsy.dataclass import dataclass
from autopsy.diagnose.diagnosis import Advice, Diagnosis, KillEffect, When

MOST = 90  # characters of a headline that can be said aloud
ASIDE = re.compile(r" \([^()]*\)")
ADDRESS = re.compile(r" [a-z+]+://[^ ]*[^ :;,]")
BREAKS = (": ", "; ", ", ")
SHOWN: tuple[tuple[When, str, int], ...] = (
    ("now", "Now", 2),
    ("if-not", "If not", 1),
    ("never", "Never", 1),
    ("later", "Later", 1),
)
KILLS: dict[KillEffect, str] = {
    "helps": "a kill helps",
    "needless": "no kill needed",
    "futile": "a kill is futile",
    "unknown": "not known whether a kill helps",
}


@dataclass(frozen=True, slots=True)
class AdviceGroup:
    """One kind of advice, with its commands."""

    label: str
    commands: tuple[Advice, ...]


def headline(diagnosis: Diagnosis) -> str:
    """Return the headline in words that can be said aloud; the whole of it stands in the line below."""
    words = diagnosis.headline
    for left_out in (ASIDE, ADDRESS):
        if len(words) > MOST:
            words = left_out.sub("", words)
    for mark in BREAKS:
        if len(words) > MOST:
            words = words[:MOST].rpartition(mark)[0] or words
    return words if len(words) <= MOST else f"{words[: MOST - 1].rpartition(' ')[0]}…"


def doing(diagnosis: Diagnosis) -> tuple[AdviceGroup, ...]:
    """Return what to do, by when; nothing is said of a kind that has no command."""
    kinds = (
        AdviceGroup(label, tuple(advice for advice in diagnosis.advice if advice.when == when)[:most])
        for when, label, most in SHOWN
    )
    return tuple(kind for kind in kinds if kind.commands)
