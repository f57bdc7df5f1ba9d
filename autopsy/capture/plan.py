"""The order of evidence: one literal tuple, what asks nothing before what asks, what may block last."""

from __future__ import annotations

from autopsy.bundle import layout
from autopsy.capture.freeze import step as freeze
from autopsy.capture.later import Later
from autopsy.capture.proc import witness
from autopsy.capture.step import Impact, Options, Step

QMP, UNSTABLES, GDB = "autopsy.capture.qmp.step", "autopsy.capture.qmp.unstable", "autopsy.capture.gdb.step"
PROC, OF_HOST, AGAIN = "autopsy.capture.proc.step", "autopsy.capture.host.step", "autopsy.capture.second_exposure"

PLAN = (
    Step(layout.WITNESS, Impact.NONE, 5, witness.witness_threads, cpu=0.1),
    Step(layout.FREEZE, Impact.STOPS, 8, freeze.expose, cpu=0.15),
    Step(layout.QUERY_STATUS, Impact.ASKS, 8, Later(QMP, "query_status"), cpu=0.1),
    Step(layout.QUERY_BLOCK, Impact.MAY_BLOCK, 6, Later(QMP, "query_block"), cpu=0.05),
    Step(layout.THROTTLE_GROUPS, Impact.MAY_BLOCK, 6, Later(QMP, "throttle_groups"), cpu=0.03),
    Step(
        *(layout.GDB_THREADS, Impact.NONE, 25, Later(GDB, "examine_stored_core")),
        without_vm=True,
        after=layout.FREEZE,
        cpu=0.5,
    ),
    Step(layout.PROC_STACKS, Impact.NONE, 5, Later(PROC, "stacks"), after=layout.THROTTLE_GROUPS, cpu=0.05),
    Step(layout.PROC_FDS, Impact.NONE, 6, Later(PROC, "fds"), beside=layout.GDB_THREADS, cpu=0.1),
    Step(layout.PROC_AIO, Impact.NONE, 4, Later(PROC, "aio"), after=layout.THROTTLE_GROUPS, cpu=0.05),
    Step(
        *(layout.HOST, Impact.NONE, 10, Later(OF_HOST, "collect_host")),
        without_vm=True,
        after=layout.THROTTLE_GROUPS,
    ),
    Step(layout.SECOND_EXPOSURE, Impact.STOPS, 25, Later(AGAIN, "expose"), beside=layout.GDB_THREADS, cpu=0.5),
)

LIGHT = frozenset({layout.WITNESS})  # a look at /proc, which costs the VM nothing

UNSTABLE = Step(layout.UNSTABLE, Impact.MAY_HARM, 6, Later(UNSTABLES, "ask"))

# What is loaded beside the first steps, each a part of its own, in the order in which it is needed.
MEANWHILE = (
    "autopsy.linux.tasks.walk:warm",
    *("concurrent.futures", "ssl", "asyncio", QMP),
    *("autopsy.examine.core.symbols", "autopsy.examine.gdb.unwind", "autopsy.examine.run", GDB),
    *("autopsy.examine.boxed:load", PROC, OF_HOST, AGAIN),
)
# What is needed after the last step; it is large, and loaded where a step takes long anyway.
UNHURRIED = (
    *("autopsy.facts.gather", "autopsy.diagnose.verdict", "autopsy.report.page", "autopsy.report.boxed:load"),
    *(
        "autopsy.commands.sealing",
        "autopsy.commands.tidying",
        "autopsy.commands.seal",
        "autopsy.report.html:compile_templates",
    ),
)


def plan(options: Options) -> tuple[Step, ...]:
    """Return the steps of one capture: what may harm the VM only where that was asked for, and last of all."""
    if options.light:
        return tuple(step for step in PLAN if step.name in LIGHT)
    return (*PLAN, UNSTABLE) if options.ask_unstable else PLAN
