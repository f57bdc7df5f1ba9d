"""The watch over real VMs."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from typing import Any

import pytest

from support import lab
from support.wedged import wedges, wedges_beyond, wedges_disks
from support.wedged.wedges import Stuck

pytestmark = pytest.mark.live


def once() -> dict[int, dict[str, Any]]:
    """Return what `watch --once --json` says of each process."""
    done = subprocess.run(
        [sys.executable, "-m", "autopsy", "watch", "--once", "--json"], capture_output=True, check=True, timeout=60
    )
    return {vm["pid"]: vm for vm in json.loads(done.stdout)["vms"]}


def test_a_single_look_tells_what_stands_from_what_is_slow_or_waits_to_be_asked(stock: lab.Build) -> None:
    with ExitStack() as vms:
        stuck: dict[str, Stuck] = {
            name: vms.enter_context(begin)
            for name, begin in {
                "limit": wedges_disks.throttled(stock),
                "server": wedges_disks.nbd_stopped(stock),
                "slow": wedges_beyond.at_its_limit(stock),
                "export": wedges_beyond.pulled_backup(stock),
                "main loop": wedges.connecting(stock),
            }.items()
        }
        found = once()
        seen = {name: found[each.vm.pid] for name, each in stuck.items()}
    assert {name: each["kind"] for name, each in seen.items()} == {
        "limit": "disk",
        "server": "disk",
        "slow": "",
        "export": "",
        "main loop": "mainloop",
    }
    assert [seen[name]["requests_in_flight"] for name in ("limit", "server", "export")] == [64, 20, 0]
