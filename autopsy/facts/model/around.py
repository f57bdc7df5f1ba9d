"""What else has a hand on the VM while its evidence is taken."""

from __future__ import annotations

import msgspec


class Around(msgspec.Struct, frozen=True):
    """What a kill would cut off in the middle, and the state that high availability keeps the VM in."""

    ongoing: tuple[str, ...] = ()
    ha: str = ""
