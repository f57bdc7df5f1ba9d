"""A host that really sleeps, in an emulated machine: that is no stall, and the real ones beside it are told."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from autopsy.drill.site import site
from autopsy.linux import environment
from support import lab
from support.asleep import host
from support.asleep.inside import SLEEPS

pytestmark = [pytest.mark.live, pytest.mark.soak, pytest.mark.timeout(1500)]

SECONDS = 1400.0
IN_TIME = 60.0  # on a processor that is emulated, beside whatever runs here: nine seconds where it has one to itself
REQUESTS = ("disk", "request")  # the latter where the writes came slowly one after the other
BEFORE = 3.5  # seconds that a request may have stood before the host slept, as far as the watch can know


def test_a_host_that_sleeps_is_no_stall_and_what_stands_before_it_and_after_is_one() -> None:
    for name in host.TOOLS:
        if shutil.which(name, path=environment.path()) is None:
            lab.missing(f"needs {name}")
    binary = lab.build("7.2").binary
    with site() as there:
        lines = tuple(host.told_by(there, binary, SECONDS))
    assert "over" in lines[-1], lines[-1]
    called = {line["vm"] for line in lines if line.get("sign")}
    assert called == {"mem", "freeze", "mapped"}, "all others are well"
    for mode in ("mem", "freeze"):
        asleep = next(line for line in lines if line.get("sleeps") == mode)
        woken = next(line for line in lines if line.get("woke") == mode)
        assert woken["boottime"] - asleep["boottime"] >= SLEEPS - 3
        signs = [line for line in lines if line.get("vm") == mode]
        assert all(line["boottime"] >= woken["boottime"] + 1 for line in signs), "around the sleep nothing is told"
        stalled = first(signs, *REQUESTS)
        awake = stalled["boottime"] - woken["boottime"]
        assert awake <= IN_TIME
        assert stalled["oldest"] <= awake + BEFORE, "the sleep counts for nothing"
        assert signs[-1]["sign"] == ""
    mapped = [line for line in lines if line.get("vm") == "mapped"]
    suspended = next(line for line in lines if "suspended" in line)
    # Of what waits above a suspended device the device itself counts nothing as in flight.
    assert first(mapped, *REQUESTS)["boottime"] - suspended["boottime"] <= IN_TIME
    assert mapped[-1]["sign"] == ""


def first(lines: list[dict[str, Any]], *signs: str) -> dict[str, Any]:
    """Return the first line that tells one of these signs."""
    return next(line for line in lines if line["sign"] in signs)
