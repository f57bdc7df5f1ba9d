"""The order of evidence: one literal tuple, what asks nothing before what asks, what may block last."""

from __future__ import annotations

from autopsy.bundle import names
from autopsy.capture import backtraces, freeze, host, proc, qmp, second, unstable, witness
from autopsy.capture.step import Impact, Options, Step

PLAN = (
    Step(names.WITNESS, Impact.NONE, 5, witness.look),
    Step(names.FREEZE, Impact.STOPS, 8, freeze.expose),
    Step(names.QUERY_STATUS, Impact.ASKS, 8, qmp.query_status),
    Step(names.QUERY_BLOCK, Impact.MAY_BLOCK, 6, qmp.query_block),
    Step(names.THROTTLE_GROUPS, Impact.MAY_BLOCK, 6, qmp.throttle_groups),
    Step(names.GDB_THREADS, Impact.NONE, 25, backtraces.look),
    Step(names.PROC_STACKS, Impact.NONE, 5, proc.stacks),
    Step(names.PROC_FDS, Impact.NONE, 6, proc.fds),
    Step(names.PROC_AIO, Impact.NONE, 4, proc.aio),
    Step(names.HOST, Impact.NONE, 10, host.look),
    Step(names.SECOND_EXPOSURE, Impact.STOPS, 25, second.expose),
)

UNSTABLE = Step(names.UNSTABLE, Impact.MAY_HARM, 6, unstable.ask)


def plan(options: Options) -> tuple[Step, ...]:
    """Return the steps of one capture: what may harm the VM only where that was asked for, and last of all."""
    return (*PLAN, UNSTABLE) if options.ask_unstable else PLAN
