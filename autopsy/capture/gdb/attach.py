"""`--live-gdb`: a gdb attached to the VM itself, where the VM cannot be frozen. It stands still meanwhile.

gdb attaches with PTRACE_ATTACH, one SIGSTOP a thread: a thread in an uninterruptible sleep makes it hang for ever with
the other threads stopped, and a gdb that is killed in between leaves the stop pending. So nothing is begun that could
hang, what hangs all the same is killed at a deadline of its own, and a guardian undoes what gdb left behind.
"""

from __future__ import annotations

import time
from contextlib import suppress
from functools import partial
from pathlib import Path

from autopsy.bundle import layout
from autopsy.bundle.records import Frame, ThreadStack
from autopsy.capture.freeze.snapshot import ProcessGone, tasks
from autopsy.capture.gdb.guardian import TRACED, Guardian, NotHealed, post
from autopsy.capture.qmp.guard import FUSE
from autopsy.capture.reading.procfs import ProcessEnded, held, must_be_the_same
from autopsy.capture.scratch import scratch
from autopsy.capture.step import Collected, Failed, Outcome, Scene, Skipped
from autopsy.dataclass import dataclass
from autopsy.errors import ExaminationFailed
from autopsy.examine.gdb.backtrace import blocks
from autopsy.examine.gdb.mi import Gdb, GdbError
from autopsy.linux.child import ChildFailed, ChildTimedOut, in_child
from autopsy.linux.files import read_kernel
from autopsy.target.image import image_of

STAND_STILL_SECONDS = 10.0  # at most, from the attach to the detach
HEAL_SECONDS = 3.0  # of the step, for what is put right after gdb
PATIENCE_SECONDS = 1.0
GLANCE_SECONDS = 0.005
MAY_NOT_STOP = frozenset("tTDXZ")
# The symbols are read before the attach, and the VM's own files wherever it has its root.
LIVE = ("set sysroot /proc/{pid}/root", "set auto-solib-add on", "file /proc/{pid}/exe", "set confirm off")


@dataclass(frozen=True, slots=True)
class GdbSession:
    """What gdb said. `stopped_ns` runs from the attach to the end of gdb; `put_right` if it left a thread stopped."""

    text: str
    whole: bool
    log: bytes
    stopped_ns: int
    put_right: bool


def attach_gdb(scene: Scene) -> Outcome:
    """Attach, take `thread apply all bt`, detach, and make sure that every thread runs as it did."""
    pid = scene.target.pid
    if obstacle := _lasting_obstacle(pid):
        return Skipped(f"--live-gdb: {obstacle}: gdb would hang with the VM stopped")
    comms = {thread.tid: thread.comm for thread in tasks(pid, f"/proc/{pid}")}
    ends_at = time.monotonic() + min(STAND_STILL_SECONDS, scene.deadline.left() - HEAL_SECONDS)
    try:
        with held(scene.target) as process, scratch(scene) as folder:
            session = _ask(scene, folder, ends_at)
            must_be_the_same(process, scene.target)
    except (ProcessEnded, ExaminationFailed, GdbError, NotHealed, ChildFailed, ChildTimedOut, OSError) as error:
        return Failed(f"--live-gdb: {error}")
    scene.write(layout.GDB_LOG, session.log)
    scene.write(layout.BACKTRACE, session.text.encode("utf-8", "backslashreplace"))
    stacks = threads(session.text, comms)
    scene.write_json(layout.THREADS, stacks)
    attached = f"{session.stopped_ns / 1e6:.0f} ms"
    words = f"{len(stacks)} threads, by a gdb that was attached to the VM for {attached} (--live-gdb)"
    words += "; what it left stopped was let go on" * session.put_right
    if not (stacks and session.whole):
        return Failed(f"{words}; gdb did not come to its end")
    return Collected(words, stop_ns=session.stopped_ns)


def _lasting_obstacle(pid: int) -> str:
    """Return what stands in the way of an attach for longer than a disk needs to answer a thread."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while (obstacle := may_not_attach(pid)) and time.monotonic() < give_up:
        time.sleep(GLANCE_SECONDS)
    return obstacle


def may_not_attach(pid: int) -> str:
    """Return why no gdb may be attached, empty where one may: every thread must be able to stop at once."""
    try:
        known = tasks(pid, f"/proc/{pid}")
    except ProcessGone as error:
        return str(error)
    for thread in known:
        folder = f"/proc/{pid}/task/{thread.tid}"
        if thread.state in MAY_NOT_STOP:
            return f"thread {thread.tid} is in state {thread.state}"
        with suppress(OSError):  # a thread that has gone since is in nobody's way
            if FUSE.search(read_kernel(f"{folder}/wchan", 256)):
                return f"thread {thread.tid} waits for a FUSE daemon"
            if TRACED.search(read_kernel(f"{folder}/status")):
                return f"thread {thread.tid} is traced already"
    return ""


def _ask(scene: Scene, folder: Path, ends_at: float) -> GdbSession:
    pid = scene.target.pid
    behind_loader = _symbols_behind_a_loader(pid)
    keeper: Guardian | None = None
    begun = time.monotonic_ns()
    try:
        with Gdb(folder, ends_at=ends_at, attaching=True) as gdb:
            for setting in LIVE:
                gdb.run(setting.format(pid=pid))
            keeper = post(pid, scene.target.pidfd, gdb.pid)
            if obstacle := _lasting_obstacle(pid):  # reading the symbols took a moment
                raise GdbError(obstacle)
            begun = time.monotonic_ns()
            gdb.run(f"attach {pid}")
            if behind_loader:
                gdb.run(behind_loader)
            answer = gdb.run("thread apply all bt")
            gdb.run("detach")
    finally:
        put_right = keeper is not None and keeper.word(HEAL_SECONDS)
    return GdbSession(answer.text, answer.whole, gdb.log(), time.monotonic_ns() - begun, put_right)


def _symbols_behind_a_loader(pid: int) -> str:
    """Return what gives gdb the names of a QEMU that a loader runs, empty where /proc/PID/exe is QEMU itself.

    gdb takes the loader for the program, and leaves out the first entry of its list of what it has loaded.
    """
    image = in_child(partial(_mapped, pid), PATIENCE_SECONDS).decode()
    return f"add-symbol-file {image} -o {int(image.rpartition('/')[2].partition('-')[0], 16):#x}" if image else ""


def _mapped(pid: int) -> bytes:
    """Return where QEMU's own binary is mapped, empty where it is the program; this takes the memory map's lock."""
    place = image_of(pid).place
    return b"" if place.endswith("/exe") else place.encode()


def threads(text: str, comms: dict[int, str]) -> tuple[ThreadStack, ...]:
    """Return the threads of gdb's backtrace; a name is gdb's own word, for there is no core to hold it against."""
    starts: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        starts.setdefault(line, number)
    return tuple(
        ThreadStack(
            tid=stack.lwp,
            comm=comms.get(stack.lwp, ""),
            frames=tuple(
                Frame(pc=frame.pc, function=frame.function, file=frame.file, line=frame.line) for frame in stack.frames
            ),
            line=starts.get(stack.lines[0], 0),
            cut_short=stack.cut_short,
        )
        for stack in blocks(text)
    )
