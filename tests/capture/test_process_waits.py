"""Which other process a thread waits for in the kernel: a child, a program that watches files, a lease's holder."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen

import pytest

from autopsy.bundle import layout
from autopsy.bundle.other_programs import ProcessWait
from autopsy.capture.proc import step as proc
from autopsy.drill.process import run
from support import lab, looking

READY = "print('ready', flush=True)\n"
SLEEPS = f"{READY}time.sleep(600)\n"
IN_A_THREAD = "import threading, time\nthreading.Thread(target=lambda: {call}, daemon=True).start()\n"
# fanotify_init(FAN_CLASS_CONTENT), fanotify_mark(FAN_MARK_ADD, mask, AT_FDCWD, path): linux/fanotify.h
WATCHES = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
group = libc.fanotify_init(4, os.O_RDONLY)
done = libc.fanotify_mark(group, 1, ctypes.c_uint64({mask:#x}), -100, {path!r}.encode())
print(group, done, flush=True)
time.sleep(600)
"""
OPEN, OPEN_PERM = 0x20, 0x10000
HOLDS = """
import fcntl, signal, time
signal.signal(signal.SIGIO, signal.SIG_IGN)
held = open({path!r}, "r+b")
fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_WRLCK)
"""
# An automounter that mounts nothing, in a process group of its own; Documentation/filesystems/autofs.rst.
MOUNTS = """
import ctypes, os, time
os.setpgrp()
_, end = os.pipe()
options = f"fd={{end}},pgrp={{os.getpgrp()}},minproto=5,maxproto=5,indirect"
libc = ctypes.CDLL(None, use_errno=True)
if libc.mount(b"test", {path!r}.encode(), b"autofs", 0, options.encode()):
    raise OSError(ctypes.get_errno(), "mount")
print("ready", flush=True)
time.sleep(600)
"""


def waits(pid: int, place: Path) -> tuple[tuple[ProcessWait, ...], dict[str, object]]:
    with looking.scene(pid, place, layout.PROC_STACKS) as at:
        proc.stacks(at)
    with looking.scene(pid, place, layout.PROC_FDS) as at:
        proc.fds(at)
        if not (at.folder / layout.PROCESS_WAITS).exists():
            return (), {}
        told = looking.decoded(at, layout.PROCESS_WAITS, tuple[ProcessWait, ...])
        return told, dict(looking.found(at, layout.SOCKETS))


def watcher(stack: ExitStack, path: Path, mask: int) -> int:
    """Start a program that watches a file, and answers no question about it."""
    program = stack.enter_context(
        Popen([sys.executable, "-c", WATCHES.format(mask=mask, path=str(path))], stdin=DEVNULL, stdout=PIPE, text=True)
    )
    stack.callback(program.kill)
    assert program.stdout
    group, done = map(int, program.stdout.readline().split())
    if group < 0 or done < 0:
        pytest.skip("this kernel does not let us watch a file (fanotify)")
    return program.pid


def test_a_child_that_is_waited_for_is_named(tmp_path: Path) -> None:
    code = f"import os, subprocess\nchild = subprocess.Popen(['sleep', '600'])\n{READY}os.waitpid(child.pid, 0)\n"
    with looking.python(code) as pid:
        lab.until("it waits for its child", lambda: lab.waits_in(pid, "do_wait"))
        (child,) = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        try:
            (wait,), sections = waits(pid, tmp_path)
            assert (wait.tid, wait.kind, wait.peer_pids) == (pid, "child", (child,))
            assert f"peer/{child}/status" in sections
        finally:
            os.kill(child, signal.SIGKILL)


def test_whoever_is_asked_before_a_file_is_opened_is_named_and_who_only_hears_of_it_is_not(tmp_path: Path) -> None:
    lab.need_root()
    image, other = tmp_path / "image", tmp_path / "other"
    image.touch()
    other.touch()
    with ExitStack() as stack:
        asked = watcher(stack, image, OPEN_PERM)
        watcher(stack, other, OPEN)
        pid = stack.enter_context(looking.python(IN_A_THREAD.format(call=f"open({str(image)!r})") + SLEEPS))
        lab.until("it waits for the watcher", lambda: lab.waits_in(pid, "fanotify_"))
        (wait,), sections = waits(pid, tmp_path / "bundle")
        assert (wait.kind, wait.peer_pids) == ("watcher", (asked,))
        assert wait.tid != pid
        assert f"peer/{asked}/status" in sections


def test_whoever_holds_a_lease_on_the_file_is_named(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.touch()
    with (
        looking.python(HOLDS.format(path=str(image)) + SLEEPS) as holder,
        looking.python(IN_A_THREAD.format(call=f"open({str(image)!r})") + SLEEPS) as pid,
    ):
        lab.until("it waits for the lease", lambda: lab.waits_in(pid, "__break_lease"))
        (wait,), sections = waits(pid, tmp_path / "bundle")
        assert (wait.kind, wait.peer_pids) == ("lease", (holder,))
        assert f"peer/{holder}/status" in sections


def test_an_automounter_that_does_not_answer_is_named(tmp_path: Path) -> None:
    lab.need_root()
    place = tmp_path / "auto"
    place.mkdir()
    with looking.python(MOUNTS.format(path=str(place))) as daemon:
        try:
            with looking.python(IN_A_THREAD.format(call=f"open({str(place / 'x' / 'image')!r})") + SLEEPS) as pid:
                lab.until("it waits for the daemon", lambda: lab.waits_in(pid, "autofs_wait"))
                (wait,), sections = waits(pid, tmp_path / "bundle")
                assert wait.kind == "automounter"
                assert daemon in wait.peer_pids
                assert f"peer/{daemon}/status" in sections
        finally:
            run("umount", "--lazy", place)


def test_where_no_thread_waits_for_a_process_nobody_is_asked(tmp_path: Path) -> None:
    with looking.python("import time\n" + SLEEPS) as pid:
        assert waits(pid, tmp_path) == ((), {})
