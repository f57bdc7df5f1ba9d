"""A monitor's socket that leads to somebody else is refused, and nothing is said to whoever it is."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from autopsy.bundle import layout
from autopsy.capture.qmp import addressee, session
from autopsy.drill.machine import Machine
from autopsy.drill.process import DrillProcess, start
from autopsy.drill.site import site
from autopsy.target import target
from autopsy.target.platforms.platform import Roots
from support import lab
from support.asking import Capture, a_monitor

SMALL = ("-nodefaults", "-no-user-config", "-display", "none", "-machine", "none")
NOWHERE = Roots(run=Path("/nonexistent"))


def lay_a_link(path: Path, victim: Path) -> None:
    path.unlink()
    path.symlink_to(victim)


def move_it_there(path: Path, victim: Path) -> None:
    """Lay the victim's own socket in the place: no link is to be seen anywhere."""
    path.unlink()
    path.hardlink_to(victim)


def link_the_folder(path: Path, victim: Path) -> None:
    path.parent.rename(path.parent.with_name("away"))
    victim.with_name(path.name).hardlink_to(victim)
    path.parent.symlink_to(victim.parent)


@contextmanager
def listening_qemu(folder: Path) -> Iterator[tuple[DrillProcess, Path]]:
    """Run a QEMU that shall be looked at, and the path of its monitor."""
    folder.mkdir()
    path = folder / "qmp.sock"
    binary = lab.build("7.2").binary
    with site() as there:
        started = start(there, [binary, *SMALL, "-name", "red", "-qmp", f"unix:{path},server=on,wait=off"], log="q.log")
        started.wait_until("it listens", path.exists)
        yield started, path


def greets(victim: Machine) -> bool:
    """Return whether the victim's monitor has its one place free."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(5)
        asking.connect(str(victim.monitor))
        return b"QMP" in asking.recv(1000)


@pytest.mark.live
@pytest.mark.parametrize("lay", [lay_a_link, move_it_there, link_the_folder])
def test_a_monitor_that_leads_to_another_vms_is_not_spoken_to(
    lay: Callable[[Path, Path], None], short: Path, tmp_path: Path
) -> None:
    with lab.qemu("7.2", name="victim") as victim, listening_qemu(short / "red") as (red, path):
        lay(path, victim.monitor)
        capture = Capture(tmp_path, red.pid, a_monitor(path))
        capture.witness()
        outcome = capture.query_status()
        (greeting,) = session.earlier(capture.scene("later"), layout.QUERY_STATUS)
        assert greeting.outcome == "refused"
        if lay is lay_a_link:
            assert greeting.why == "a symbolic link lies in the place of its monitor's socket"
        else:
            whose = f"its monitor's socket belongs to another process: qemu-system-x86 (pid {victim.pid})"
            assert greeting.why == whose
        assert greeting.why in str(outcome)
        assert greets(victim)


@pytest.mark.live
def test_a_link_in_a_sockets_place_does_not_make_its_qemu_answer_to_the_other_path(short: Path) -> None:
    with lab.qemu("7.2", name="victim") as victim, listening_qemu(short / "red") as (_, path):
        lay_a_link(path, victim.monitor)
        found = target.find_target(f"qmp:{victim.monitor}", NOWHERE)
        os.close(found.pidfd)
        assert found.pid == victim.pid


def test_a_swap_after_the_look_is_seen_once_connected(short: Path) -> None:
    """The look at the file is a courtesy to strangers; what holds is the look at the other end."""
    with ExitStack() as stack:
        ours, theirs = (stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2))
        ours.bind(str(short / "s"))
        ours.listen(1)
        theirs.connect(str(short / "s"))
        addressee.make_sure(theirs, os.getpid())  # it waits in the backlog
        accepted, _ = ours.accept()
        stack.enter_context(accepted)
        addressee.make_sure(theirs, os.getpid())
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[theirs.fileno()]) as other:
            with pytest.raises(addressee.ForeignSocket, match="its monitor's socket belongs to another process: "):
                addressee.make_sure(theirs, other.pid)
            other.communicate()


@pytest.mark.live
def test_a_socket_that_a_manager_listened_on_and_handed_down_is_the_vms_own(short: Path, tmp_path: Path) -> None:
    """As libvirt does it: the kernel's credentials of that socket are then the manager's, and would not do."""
    path = short / "handed.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(1)
        words = (f"socket,id=c,fd={listening.fileno()},server=on,wait=off", "-mon", "chardev=c,mode=control")
        binary = lab.build("7.2").binary
        with subprocess.Popen([binary, *SMALL, "-chardev", *words], pass_fds=[listening.fileno()]) as vm:
            try:
                capture = Capture(tmp_path, vm.pid, a_monitor(path))
                capture.witness()
                capture.query_status()
                assert session.earlier(capture.scene("later"), layout.QUERY_STATUS)[0].outcome == "greeted"
            finally:
                vm.kill()


@pytest.mark.live
def test_a_vm_whose_monitor_somebody_else_holds_is_still_known_for_the_owner_of_its_socket(
    short: Path, tmp_path: Path
) -> None:
    with listening_qemu(short / "busy") as (vm, path), socket.socket(socket.AF_UNIX) as holding:
        holding.connect(str(path))
        holding.recv(1000)
        threading.Timer(1.0, holding.shutdown, [socket.SHUT_RDWR]).start()
        capture = Capture(tmp_path, vm.pid, a_monitor(path))
        capture.witness()
        capture.query_status()
        greeting = session.earlier(capture.scene("later"), layout.QUERY_STATUS)[0]
        assert greeting.outcome == "greeted"
        assert "waited" in greeting.why
