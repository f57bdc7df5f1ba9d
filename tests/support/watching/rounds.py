"""Rounds of a watch as tests need them."""

from __future__ import annotations

import time
from typing import Any

from autopsy.watch.model import Round, WatchedVm


def vm(name: str = "web1", **given: Any) -> WatchedVm:
    """Return a VM that is well, but for what is given."""
    known = {"target": f"libvirt:{name}", "pid": 4242, "start_ticks": 100, "manager": "libvirt"}
    return WatchedVm(name=name, **{**known, **given})


def of(*vms: WatchedVm, **given: Any) -> Round:
    """Return a round that has just ended."""
    return Round(at=time.time(), vms=vms, **given)
