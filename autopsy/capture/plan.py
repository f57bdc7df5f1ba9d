"""The order of evidence: one literal tuple, what asks nothing before what asks, what may block last."""

from __future__ import annotations

from autopsy.bundle import layout
from autopsy.capture import second_exposure
from autopsy.capture.freeze import step as freeze
from autopsy.capture.gdb import step as gdb
from autopsy.capture.host import step as host
from autopsy.capture.proc import step as proc
from autopsy.capture.proc import witness
from autopsy.capture.qmp import step as qmp
from autopsy.capture.qmp import unstable
from autopsy.capture.step import Impact, Options, Step

PLAN = (
    Step(layout.WITNESS, Impact.NONE, 5, witness.witness_threads),
    Step(layout.FREEZE, Impact.STOPS, 8, freeze.expose),
    Step(layout.QUERY_STATUS, Impact.ASKS, 8, qmp.query_status),
    Step(layout.QUERY_BLOCK, Impact.MAY_BLOCK, 6, qmp.query_block),
    Step(layout.THROTTLE_GROUPS, Impact.MAY_BLOCK, 6, qmp.throttle_groups),
    Step(layout.GDB_THREADS, Impact.NONE, 25, gdb.examine_stored_core, without_vm=True),
    Step(layout.PROC_STACKS, Impact.NONE, 5, proc.stacks),
    Step(layout.PROC_FDS, Impact.NONE, 6, proc.fds),
    Step(layout.PROC_AIO, Impact.NONE, 4, proc.aio),
    Step(layout.HOST, Impact.NONE, 10, host.collect_host, without_vm=True),
    Step(layout.SECOND_EXPOSURE, Impact.STOPS, 25, second_exposure.expose),
)

UNSTABLE = Step(layout.UNSTABLE, Impact.MAY_HARM, 6, unstable.ask)


def plan(options: Options) -> tuple[Step, ...]:
    """Return the steps of one capture: what may harm the VM only where that was asked for, and last of all."""
    return (*PLAN, UNSTABLE) if options.ask_unstable else PLAN
