"""A backup's copy that its guest's write waits for no longer (cbw-timeout) holds up nobody."""

from __future__ import annotations

import pytest

from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from support.built import evidence as e

URI = "nbd+unix:///?socket=/run/nbd.sock"
INSIDE = (*e.YIELD, "qio_channel_yield", "nbd_receive_reply", "", "bdrv_co_pwritev_part", "~blk_make_empty")
STRIPPED = (*INSIDE, "~co_put_to_shres", "~qemu_coroutine_switch")
NAMED = (*INSIDE, "qemu_co_timeout_entry", "coroutine_trampoline")
# The guest's write, meanwhile.
SLEEPS = (*e.YIELD, "qemu_co_sleep", "qemu_co_sleep_ns_wakeable", "qemu_co_timeout", "block_copy")
WAITS = (*SLEEPS, "", "bdrv_co_pwritev_part", "~blk_co_pwritev_part")


def told(*parked: tuple[str, ...], done: int) -> Diagnosis:
    case = e.Case(version="10.0.2")
    case.idle_threads()
    for frames in parked:
        case.parked(frames)
    case.monitor()
    case.disks(e.disk("d0", "vd0", before=100, after=100 + done, driver="copy-before-write", file=URI))
    return diagnose(gather_facts(case.bundle()))


@pytest.mark.parametrize("copy", [STRIPPED, NAMED])
def test_a_copy_that_nobody_waits_for_is_not_told_as_a_request_and_keeps_the_vm_from_being_proven_well(
    copy: tuple[str, ...],
) -> None:
    found = told(copy, done=40)
    assert (found.signature, found.confidence) == ("healthy", "likely")
    assert any("that nobody waits for any more" in link.text for link in found.chain)


@pytest.mark.parametrize("copy", [STRIPPED, NAMED])
def test_one_that_a_write_still_waits_for_is(copy: tuple[str, ...]) -> None:
    found = told(copy, WAITS, done=0)
    assert (found.where, found.signature) == ("peer", "nbd-silent")
    assert "backup-holds-writes" in {each.signature for each in found.secondary}
