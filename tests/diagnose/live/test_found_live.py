"""What looks well from here is told for what is behind it, on each QEMU that trials have tried; its twin is well."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from support import lab
from support.verdicts import captured
from support.wedged import wedges_found as found
from support.wedged.trials import Trial, on_each_qemu

pytestmark = [pytest.mark.live, pytest.mark.soak]  # stored cases say the same in the gate

OLD, NEW, DEBUG, NEWEST = "7.2", "10.0.2", "10.0.2-debug", "11"
TRIALS = (
    Trial(
        "a back end that waits for a server of its own",
        "none",
        "healthy",
        found.back_end_over_a_server,
        (NEW,),
        ("likely",),
    ),
    Trial(
        "a back end whose server serves", "none", "healthy", partial(found.back_end_over_a_server, stops=False), (NEW,)
    ),
    Trial(
        "a server that asks a stopped one",
        "peer",
        "nbd-silent",
        found.server_over_a_server,
        (OLD, NEW),
        ("likely",),
        says="is itself a client of qemu-nbd",
    ),
    Trial(
        "a server whose own server serves",
        "none",
        "healthy",
        partial(found.server_over_a_server, stops=False),
        (OLD, NEWEST),
    ),
    Trial("RAM at a stopped daemon", "peer", "fuse-daemon-silent", found.ram_on_fuse, (NEW, DEBUG), says="RAM"),
    Trial("RAM at a daemon that serves", "none", "healthy", partial(found.ram_on_fuse, stops=False), (NEW,)),
    Trial(
        "a server that accepts nobody",
        "peer",
        "nbd-reconnecting",
        found.nobody_accepts,
        (OLD, NEWEST),
        ("likely",),
        says="has not accepted the connection",
    ),
    Trial(
        "a loop device over a frozen file system",
        "host",
        "aio-in-kernel",
        found.loop_device,
        (OLD, NEW),
        says="that its data lies on",
    ),
    Trial(
        "a loop device that works", "none", "healthy", partial(found.loop_device, freezes=False), (NEW,), ("proven",)
    ),
    Trial(
        "a FIFO whose reader is stopped",
        "control",
        "chardev-blocked",
        found.console_to_a_fifo,
        (OLD, NEWEST),
        says="is stopped",
    ),
    Trial("a FIFO whose reader reads", "none", "healthy", partial(found.console_to_a_fifo, stops=False), (NEWEST,)),
)


@on_each_qemu(TRIALS)
def test_what_is_behind_it_is_told(trial: Trial, label: str, tmp_path: Path) -> None:
    with trial.set_up(lab.build(label)) as it:
        verdict = captured(it.vm.pid, tmp_path)
        trial.assert_told(verdict)
        assert all(name in verdict.objects for name in it.names if trial.where != "none"), verdict
