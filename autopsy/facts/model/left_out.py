"""What a limit of ours kept out of a bundle."""

from __future__ import annotations

from autopsy.dataclass import dataclass
from autopsy.facts.cite import Cite


@dataclass(frozen=True, slots=True)
class LeftOutFact:
    """One place where a limit bit. `requests`: some that wait may be among what was left out, and were not counted."""

    what: str
    why: str
    requests: bool
    cite: Cite
