"""A line of the host's log is evidence only if it names this process or what it waits for, and is younger than it."""

from __future__ import annotations

import pytest

from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from support.built import cases
from support.built import evidence as e

ERROR = "Buffer I/O error on dev {}, logical block 24836, lost async page write"


def quoted(*lines: str) -> list[str]:
    case = cases.frozen_threads()
    case.log = "\n".join(lines)
    found = diagnose(gather_facts(case.bundle()))
    assert found.signature == "host-fs-frozen"
    return [claim.text for claim in found.chain if claim.text.startswith("The host's log says")]


@pytest.mark.parametrize(
    "line",
    [
        f"<3>[ 4772.4] {ERROR.format('loop0')}",
        f"<3>[ 4772.4] INFO: task worker:{e.PID + 100} blocked for more than 120 seconds",
        "<4>[ 4772.4] EXT4-fs error: /mnt/vm stands",
        f"2026-06-11T15:20:59.000000+00:00 pve kernel: {ERROR.format('loop0')}",
    ],
)
def test_a_line_that_names_the_device_a_thread_or_the_mount_is_quoted(line: str) -> None:
    assert len(quoted(line)) == 1


@pytest.mark.parametrize(
    "line",
    [
        f"<3>[ 4772.4] {ERROR.format('loop1')}",
        f"<3>[ 4772.4] {ERROR.format('loop01')}",
        f"<3>[ 4772.4] INFO: task other:1{e.PID} blocked for more than 120 seconds",
        f"<3>[    0.0] {ERROR.format('loop0')}",  # the VM began after that
        f"2026-06-11T15:20:49.000000+00:00 pve kernel: {ERROR.format('loop0')}",
        f"{ERROR.format('loop0')}, and nobody knows when",
    ],
)
def test_a_line_about_another_device_or_from_before_the_vm_is_not(line: str) -> None:
    assert quoted(line) == []
