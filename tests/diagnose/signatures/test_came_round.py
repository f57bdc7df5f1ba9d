"""A main loop that was met deep inside a call, and answered afterwards, is no dead main loop."""

from __future__ import annotations

import pytest

from autopsy.bundle import records
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from support.built import evidence as e

SAVES = ("bdrv_flush", "bdrv_all_create_snapshot", "save_snapshot", "hmp_savevm")
DRAINS = ("bdrv_drain_all_begin", "do_vm_stop", "qmp_stop")


def met_inside(under: tuple[str, ...], *, answers: bool) -> Diagnosis:
    case = e.Case(version="10.0.2")
    case.idle_threads()
    case.tasks[0].frames = ("ppoll", "aio_poll", *under)
    case.main_loop = records.MainLoop(tid=e.PID, state="nested poll", under=under[0], command=under[-1], why="aio_poll")
    if answers:
        case.monitor()
        case.disks(e.disk("d0"))
    else:
        case.dead_monitor()
    return diagnose(gather_facts(case.bundle()))


@pytest.mark.parametrize("under", [SAVES, DRAINS])
def test_a_main_loop_that_came_round_is_not_called_dead(under: tuple[str, ...]) -> None:
    found = met_inside(under, answers=True)
    assert found.where == "none", found.headline
    assert not {each.signature for each in found.secondary} & {"savevm-blocks-main-loop", "main-loop-nested-poll"}


@pytest.mark.parametrize(
    ("under", "signature"), [(SAVES, "savevm-blocks-main-loop"), (DRAINS, "main-loop-nested-poll")]
)
def test_the_same_main_loop_that_answers_nobody_is(under: tuple[str, ...], signature: str) -> None:
    found = met_inside(under, answers=False)
    assert signature in {found.signature, *(each.signature for each in found.secondary)}
