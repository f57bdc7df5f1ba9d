"""A request that is no disk's stands in the one driver among all nodes that can make it wait."""

from __future__ import annotations

from autopsy.bundle import records
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from support.built import evidence as e

NAMELESS = (*e.YIELD, "", "", "bdrv_co_pwritev_part", "", "coroutine_trampoline")


def drained(*blockdevs: str) -> e.Case:
    case = e.Case()
    case.idle_threads()
    case.parked(NAMELESS)
    case.main_loop = records.MainLoop(tid=e.PID, state="nested poll", under="blk_unref")
    case.command_line = tuple(word for each in blockdevs for word in ("-blockdev", each))
    case.command_line += ("-drive", "file=/d.raw,if=none,id=d0")
    return case


def test_a_drain_over_a_node_that_no_disk_uses_is_behind_that_node_s_driver() -> None:
    found = diagnose(gather_facts(drained("driver=blkdebug,node-name=debug0,image=file0").bundle()))
    assert (found.where, found.signature) == ("block", "blkdebug-suspended")
    assert "main-loop-nested-poll" in {each.signature for each in found.secondary}


def test_where_two_drivers_could_hold_it_none_is_named() -> None:
    both = ("driver=blkdebug,node-name=debug0,image=file0", "driver=nbd,node-name=nbd0,server.type=unix,server.path=/n")
    assert diagnose(gather_facts(drained(*both).bundle())).signature not in {"blkdebug-suspended", "nbd-silent"}
