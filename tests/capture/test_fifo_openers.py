"""Who opens the other end of a FIFO that a real process waits in open(2) of, though it has no descriptor yet."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from subprocess import DEVNULL, Popen

from autopsy.bundle import layout
from autopsy.bundle.other_programs import FifoOpening
from autopsy.capture.proc import step as proc
from autopsy.drill.process import states
from support import lab, looking

OPENS = "import os, threading, time\nthreading.Thread(target=lambda: open({path!r}, 'r'), daemon=True).start()\n"
WAITS = "print('ready', flush=True)\ntime.sleep(600)\n"


def opener(stack: ExitStack, path: Path, mode: str, folder: Path) -> int:
    """Start a program that waits in open(2), by a name that is relative to its folder, and stop it there."""
    program = stack.enter_context(
        Popen([sys.executable, "-c", f"open({path.name!r}, {mode!r})"], cwd=folder, stdin=DEVNULL, stderr=DEVNULL)
    )
    stack.callback(program.kill)
    lab.until("it waits in open", lambda: lab.waits_in(program.pid, "wait_for_partner"))
    os.kill(program.pid, signal.SIGSTOP)
    lab.until("it is stopped there", lambda: states(program.pid) == {"T"})
    return program.pid


def test_whoever_is_stopped_in_open_of_the_other_end_is_named_and_nobody_else(tmp_path: Path) -> None:
    fifo, another = tmp_path / "fifo", tmp_path / "another"
    os.mkfifo(fifo)
    os.mkfifo(another)
    with ExitStack() as stack:
        writer = opener(stack, fifo, "w", tmp_path)
        opener(stack, another, "w", tmp_path)
        pid = stack.enter_context(looking.python(OPENS.format(path=str(fifo)) + WAITS))
        lab.until("the target waits in open", lambda: lab.waits_in(pid, "wait_for_partner"))
        opener(stack, fifo, "r", tmp_path)  # it wants the same end
        at = stack.enter_context(looking.scene(pid, tmp_path / "bundle", layout.PROC_STACKS))
        proc.stacks(at)
        at = stack.enter_context(looking.scene(pid, tmp_path / "bundle", layout.PROC_FDS))
        proc.fds(at)
        (opening,) = looking.decoded(at, layout.FIFO_OPENINGS, tuple[FifoOpening, ...])
        assert (opening.path, opening.peer_pids) == (str(fifo), (writer,))
        assert f"peer/{writer}/status" in looking.found(at, layout.SOCKETS)


def test_where_no_thread_waits_in_open_nobody_is_asked(tmp_path: Path) -> None:
    with looking.python("import time\n" + WAITS) as pid:
        with looking.scene(pid, tmp_path, layout.PROC_STACKS) as at:
            proc.stacks(at)
        with looking.scene(pid, tmp_path, layout.PROC_FDS) as at:
            proc.fds(at)
            assert not (at.folder / layout.FIFO_OPENINGS).exists()
