"""The scenarios of `autopsy drill`, each with what it needs and what a capture must say of it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from autopsy.dataclass import dataclass
from autopsy.diagnose.diagnosis import Where
from autopsy.drill import wedges
from autopsy.drill.machine import Machine
from autopsy.drill.site import Site, ended_in_order, site
from autopsy.errors import UsageError

DEFAULT = "throttle"


@dataclass(frozen=True, slots=True)
class Scenario:
    """`where` is the verdict's, from the closed vocabulary; `effect` is what stands beside it as secondary.

    One that `survives_kill` has a thread that only the storage can set free: SIGKILL is sent, and the process stays
    until the scenario is taken down. On FUSE it is the flush of every close, which the kernel waits out.
    """

    name: str
    description: str
    where: Where
    set_up: Callable[[Site], Machine]
    needs: tuple[str, ...] = ()
    effect: Where | None = None
    survives_kill: bool = False


@dataclass(frozen=True, slots=True)
class Wedged:
    """A QEMU as the scenario left it. `endings` are the shell commands that end it by hand."""

    scenario: Scenario
    pid: int
    target: str
    note: str
    endings: tuple[str, ...]


SCENARIOS = (
    Scenario(
        "throttle",
        "writes that wait behind a throttle timer",
        "throttle",
        wedges.behind_a_throttle_timer,
    ),
    Scenario(
        "throttle-node",
        "writes that wait behind a throttle filter node's timer",
        "throttle",
        wedges.behind_a_throttle_node,
    ),
    Scenario(
        "nbd-silent",
        "an NBD server that does not answer",
        "peer",
        wedges.silent_nbd_server,
        needs=("qemu-nbd",),
    ),
    Scenario(
        "drain",
        "a QMP `stop` that drains for ever over an NBD server that does not answer",
        "peer",
        wedges.drain_without_end,
        needs=("qemu-nbd",),
        effect="block",
    ),
    Scenario(
        "fuse-stuck",
        "a disk on a FUSE file system whose daemon is stopped",
        "peer",
        wedges.stuck_fuse_daemon,
        needs=("root", "qemu-storage-daemon", "/dev/fuse"),
        survives_kill=True,
    ),
    Scenario(
        "frozen-fs",
        "a disk on a frozen file system, aio=threads",
        "host",
        wedges.frozen_file_system,
        needs=("root", "mkfs.ext4", "fsfreeze", "/dev/loop-control"),
        survives_kill=True,
    ),
    Scenario(
        "frozen-fs-native",
        "a disk on a frozen file system, aio=native: the main loop is stuck in io_submit",
        "host",
        wedges.frozen_file_system_native,
        needs=("root", "mkfs.ext4", "fsfreeze", "/dev/loop-control"),
        survives_kill=True,
        effect="control",
    ),
    Scenario(
        "blkdebug",
        "a write that a blkdebug breakpoint holds",
        "block",
        wedges.suspended_by_blkdebug,
    ),
    Scenario(
        "stopped",
        "a QEMU under SIGSTOP",
        "process",
        wedges.stopped_process,
    ),
    Scenario(
        "paused",
        "a VM paused on purpose",
        "vm-state",
        wedges.paused_vm,
    ),
    Scenario(
        "healthy",
        "an idle VM with nothing wrong",
        "none",
        wedges.healthy_idle,
    ),
    Scenario(
        "busy",
        "a VM that writes as fast as it can, with nothing wrong",
        "none",
        wedges.healthy_busy,
    ),
)


def find(name: str) -> Scenario:
    """Return the scenario of that name.

    Raises:
        UsageError: There is none.
    """
    for scenario in SCENARIOS:
        if scenario.name == name:
            return scenario
    raise UsageError(name, "no such drill", remedy="`autopsy drill --list` shows them")


@contextmanager
def wedged(name: str = DEFAULT, *, keep: bool = False) -> Iterator[Wedged]:
    """Set a scenario up, and take it down again however the block ends.

    With `keep` it stays when the block ends well; `endings` say how to end it then.

    Raises:
        AutopsyError: Something it needs is not there, or it did not come about.
    """
    scenario = find(name)
    with ended_in_order(), site(keep=keep) as there:
        vm = scenario.set_up(there)
        yield Wedged(
            scenario,
            vm.pid,
            f"pid:{vm.pid}",
            f"QEMU {vm.pid}, monitor {vm.monitor}: {scenario.description}",
            tuple(shlex.join(command) for command in there.endings),
        )
