"""Every wedge that holds requests, the main loop or the vCPUs is noticed in time."""

from __future__ import annotations

import pytest

from autopsy.watch.model import StallKind
from support import lab
from support.watching.noticing import noticed, watching
from support.wedged.noticed import WEDGES, Wedge

pytestmark = [pytest.mark.live, pytest.mark.soak]

SECONDS = 10.0  # the stage at which a stall is called one
LATE = 8.0  # of a busy machine, and of requests that went on once more while the watch began


@pytest.mark.parametrize(("wedge", "kinds"), [each[1:] for each in WEDGES], ids=[each[0] for each in WEDGES])
def test_a_wedge_is_noticed(build: lab.Build, wedge: Wedge, kinds: set[StallKind]) -> None:
    with wedge(build) as stuck, watching(stuck.vm.pid) as watch:
        kind, seconds = noticed(watch, stuck.vm.pid, SECONDS + LATE)
    assert kind in kinds
    assert seconds <= SECONDS + LATE
