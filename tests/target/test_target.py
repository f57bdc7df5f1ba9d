"""One word of the operator becomes one process."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest

from autopsy.drill.process import start
from autopsy.drill.site import Site
from autopsy.errors import AmbiguousVm, AutopsyError, ExitCode, NoSuchVm, NotQemu, UsageError
from autopsy.linux.child import in_child
from autopsy.target import qemu_processes, target
from autopsy.target.platforms.platform import Roots
from autopsy.target.target import Target
from support import lab
from support.builds import version

SMALL = ("-nodefaults", "-no-user-config", "-display", "none", "-machine", "none", "-S")
CLONE_NEWNS = 0x20000
MS_REC, MS_PRIVATE = 1 << 14, 1 << 18
NOWHERE = Roots(run=Path("/nonexistent"))


@contextmanager
def found(word: str, roots: Roots = NOWHERE) -> Iterator[Target]:
    held = target.find_target(word, roots)
    try:
        yield held
    finally:
        os.close(held.pidfd)


@contextmanager
def small(there: Site, *command: str | Path, before: tuple[str, ...] = ()) -> Iterator[int]:
    """Run a QEMU that only stands there; `before` are words that lead up to it, such as unshare's."""
    started = start(there, [*before, *command, *SMALL], log="qemu.log")
    yield started.pid


def connects(path: str) -> bool:
    """Return whether a monitor greets there; its socket is there a moment before anybody listens."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        try:
            connection.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return b"QMP" in connection.recv(100)


def build_id(binary: Path) -> str:
    said = subprocess.run(["readelf", "-n", binary], capture_output=True, text=True, check=True).stdout
    return said.partition("Build ID: ")[2].split()[0]


@pytest.mark.live
def test_every_form_of_a_word_finds_the_same_process(build: lab.Build) -> None:
    with lab.qemu(build, name="form-of-words") as vm:
        for word in (str(vm.pid), f"pid:{vm.pid}", "form-of-words", f"qmp:{vm.monitor}"):
            with found(word) as held:
                record = held.record
                assert record.pid == held.pid == vm.pid
                assert (record.name, record.manager) == ("form-of-words", "process")
                assert record.exe == os.readlink(f"/proc/{vm.pid}/exe")
                assert build.binary.samefile(f"/proc/{vm.pid}/exe")
                assert not record.exe_deleted
                assert record.build_id == build_id(build.binary)
                assert record.qemu_version.startswith(version(build))
                assert target.is_alive(held)
                monitor = record.monitors[0]
                assert (monitor.protocol, monitor.transport) == ("qmp", "unix")
                assert monitor.address == monitor.reachable == str(vm.monitor)
        vm.process.end()
        with pytest.raises(NoSuchVm):
            target.find_target("form-of-words", NOWHERE)


@pytest.mark.live
def test_the_held_process_is_known_to_have_ended() -> None:
    with lab.qemu("7.2") as vm, found(f"pid:{vm.pid}") as held:
        vm.process.end()
        assert not target.is_alive(held)


def test_a_pid_that_is_no_qemu_is_refused_with_what_it_is(short: Path) -> None:
    disguised = short / "qemu-system-x86_64"
    shutil.copy(shutil.which("sleep") or "", disguised)
    for program in ("sleep", str(disguised)):
        with subprocess.Popen([program, "60"]) as child:
            try:
                with pytest.raises(NotQemu, match=f"process {child.pid} is .*{os.path.basename(program)}") as refusal:
                    target.find_target(str(child.pid), NOWHERE)
                assert refusal.value.exit_code == ExitCode.NO_SUCH_VM
                assert "autopsy ps" in refusal.value.remedy
            finally:
                child.kill()


def test_the_kernels_own_threads_and_the_dead_are_told_for_what_they_are() -> None:
    comm = Path("/proc/2/comm")
    if os.geteuid() == 0 and comm.exists() and comm.read_text() == "kthreadd\n":
        with pytest.raises(NotQemu, match="kernel's own thread kthreadd"):
            target.find_target("pid:2", NOWHERE)
    with subprocess.Popen(["true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(NoSuchVm, match="has ended and waits for its parent"):
            target.find_target(f"pid:{child.pid}", NOWHERE)
    with pytest.raises(NoSuchVm, match="there is no process"):
        target.find_target(f"pid:{child.pid}", NOWHERE)


def test_a_threads_number_leads_to_its_process() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        with pytest.raises(NotQemu, match=f"is a thread of process {os.getpid()}") as refusal:
            target.find_target(f"pid:{thread.native_id}", NOWHERE)
        assert str(os.getpid()) in refusal.value.remedy
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("word", ["pid:", "pid:x", "", "pid:0", "pid:99999999999", "pve:", "qmp:", "libvirt:"])
def test_a_word_that_cannot_be_meant_is_a_usage_error(word: str) -> None:
    with pytest.raises(UsageError):
        target.find_target(word, NOWHERE)


@pytest.mark.parametrize("word", ["no-such-vm", "4194303", "pve:../../etc/passwd", "libvirt:../x", "qmp:/nope", "٣"])
def test_a_word_that_means_nothing_is_no_such_vm(word: str) -> None:
    with pytest.raises(NoSuchVm):
        target.find_target(word, NOWHERE)


@pytest.mark.live
def test_one_name_for_two_machines_is_refused_with_both() -> None:
    with lab.qemu("7.2", name="twin") as one, lab.qemu("7.2", name="twin") as other:
        with pytest.raises(AmbiguousVm) as refusal:
            target.find_target("twin", NOWHERE)
        assert f"pid:{one.pid}" in refusal.value.cause
        assert f"pid:{other.pid}" in refusal.value.cause
        assert refusal.value.exit_code == ExitCode.USAGE
        assert refusal.value.cause.count(" up ") == 2
        assert refusal.value.remedy.endswith(
            (f"say which you mean: pid:{one.pid} or pid:{other.pid}", f"pid:{other.pid} or pid:{one.pid}")
        )


@pytest.mark.live
@pytest.mark.parametrize("word", ["SHOP-DB", "shop", "shop-bd"])
def test_a_near_miss_is_answered_by_the_name_that_was_meant(word: str) -> None:
    with lab.qemu("7.2", name="shop-db") as vm:
        with pytest.raises(NoSuchVm) as refusal:
            target.find_target(word, NOWHERE)
        assert f"did you mean shop-db (pid {vm.pid})" in refusal.value.remedy


@pytest.mark.live
def test_a_binary_that_was_deleted_is_still_told(short: Path) -> None:
    (short / "bin").mkdir()
    (short / "lib").symlink_to("/usr/lib")  # a QEMU looks for its modules beside the folder that it lies in
    binary = short / "bin" / "vm-emulator"  # nor does it matter what it is called
    shutil.copy(lab.build("7.2").binary, binary)
    with lab.site() as there, small(there, binary, "-qmp", f"unix:{short}/q,server=on,wait=off") as pid:
        lab.until("its monitor greets", lambda: connects(str(short / "q")))  # from now on it needs none of its modules
        with found(f"qmp:{short}/q") as held:
            assert held.pid == pid
        binary.unlink()
        with found(str(pid)) as held:
            assert held.record.exe == str(binary)
            assert held.record.exe_deleted
            assert held.record.build_id == build_id(lab.build("7.2").binary)
            assert held.record.qemu_version.startswith(version(lab.build("7.2")))


@pytest.mark.live
def test_a_monitor_in_a_private_mount_namespace_is_found_and_reached(short: Path) -> None:
    lab.need_root()
    hidden = short / "hidden"
    hidden.mkdir()
    binary = lab.build("7.2").binary
    script = f'mount -t tmpfs none {hidden} && exec "$@"'
    with (
        lab.site() as there,
        small(
            there,
            binary,
            "-qmp",
            f"unix:{hidden}/q,server=on,wait=off",
            before=("unshare", "-m", "sh", "-c", script, "-"),
        ) as pid,
    ):
        lab.until("its monitor is there", lambda: os.path.exists(f"/proc/{pid}/root{hidden}/q"))
        assert not (hidden / "q").exists()
        for word in (f"qmp:{hidden}/q", f"qmp:/proc/{pid}/root{hidden}/q", str(pid)):
            with found(word) as held:
                assert held.pid == pid
                (monitor,) = held.record.monitors
                assert monitor.address == f"{hidden}/q"
                assert monitor.reachable == f"/proc/{pid}/root{hidden}/q"
                assert connects(monitor.reachable)


@pytest.mark.live
def test_a_monitor_behind_links_in_a_chroot_is_reached_where_the_links_lead_there(short: Path) -> None:
    lab.need_root()
    inside = short / "r"
    inside.mkdir()
    real = short / "real"
    real.mkdir()
    (short / "link").symlink_to(real)
    binary = lab.build("7.2").binary
    # The link is absolute: followed below /proc/PID/root as it stands, it would lead into our own tree.
    script = (
        f'mount --rbind / {inside} && cd {short} && exec chroot {inside} sh -c \'cd {short}/real && exec "$@"\' - "$@"'
    )
    with (
        lab.site() as there,
        small(
            there,
            binary,
            *("-qmp", f"unix:{short}/link/a,server=on,wait=off", "-qmp", "unix:relative,server=on,wait=off"),
            before=("unshare", "-m", "sh", "-c", script, "-"),
        ) as pid,
    ):
        lab.until("its monitors are there", (real / "relative").exists)
        with found(str(pid)) as held:
            absolute, relative = held.record.monitors
        assert absolute.reachable == str(real / "a")
        assert relative.address == "relative"
        assert relative.reachable == str(real / "relative")
        assert connects(absolute.reachable)
        assert connects(relative.reachable)


@pytest.mark.live
def test_a_monitor_in_another_network_and_pid_namespace_is_found(short: Path) -> None:
    lab.need_root()
    binary = lab.build("7.2").binary
    with (
        lab.site() as there,
        small(
            there, binary, "-qmp", f"unix:{short}/n,server=on,wait=off", "-name", "guest=in-a-box",
            before=("unshare", "-n", "-p", "-f", "--kill-child"),
        ),
    ):  # fmt: skip
        lab.until("its monitor is there", (short / "n").exists)
        with found("in-a-box") as by_name, found(f"qmp:{short}/n") as by_socket:
            assert by_name.record == by_socket.record
            assert by_name.record.monitors[0].reachable == f"{short}/n"


@pytest.mark.live
def test_who_holds_a_monitor_is_told_without_touching_it() -> None:
    with lab.qemu("7.2") as vm, closing(socket.socket(socket.AF_UNIX)) as client:
        client.connect(str(vm.monitor))
        client.recv(1)
        with found(str(vm.pid)) as held:
            assert f"(pid {os.getpid()})" in held.record.monitors[0].held_by
        client.close()
        lab.until("the place is free", partial(_free, vm.pid))


def _free(pid: int) -> bool:
    with found(str(pid)) as held:
        return held.record.monitors[0].held_by == ""


@pytest.mark.live
def test_an_inherited_socket_is_a_monitor_with_its_path(short: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind(str(short / "m"))
        listening.listen(1)
        number = listening.fileno()
        words = ("-chardev", f"socket,id=charmonitor,fd={number},server=on,wait=off")
        mon = ("-mon", "chardev=charmonitor,id=monitor,mode=control")
        with subprocess.Popen([lab.build("7.2").binary, *SMALL, *words, *mon], pass_fds=(number,)) as child:
            try:
                listening.close()
                lab.until("it is a QEMU", lambda: "qemu" in os.readlink(f"/proc/{child.pid}/exe"))
                with found(str(child.pid)) as held:
                    (monitor,) = held.record.monitors
                assert (monitor.protocol, monitor.transport) == ("qmp", "unix")
                assert monitor.address == monitor.reachable == str(short / "m")
                assert connects(monitor.reachable)
            finally:
                child.kill()


def test_a_socket_of_another_program_is_refused_with_whose_it_is(short: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind(str(short / "x"))
        with pytest.raises(NoSuchVm, match="nobody listens"):
            target.find_target(f"qmp:{short}/x", NOWHERE)
        listening.listen(1)
        with pytest.raises(NotQemu, match=rf"\(pid {os.getpid()}\) listens on that socket, and is no QEMU"):
            target.find_target(f"qmp:{short}/x", NOWHERE)
    (short / "file").touch()
    with pytest.raises(NoSuchVm, match="no socket"):
        target.find_target(f"qmp:{short}/file", NOWHERE)


@pytest.mark.live
def test_what_we_may_not_look_into_is_refused_with_how_to_get_there() -> None:
    lab.need_root()
    with lab.qemu("7.2", name="not-yours") as vm:
        for word in ("not-yours", str(vm.pid), f"pid:{vm.pid}"):
            said = in_child(partial(_as_nobody, word), 10).decode()
            assert said.startswith("NOT_PERMITTED")
            assert "root" in said


@pytest.mark.live
def test_a_process_that_proc_hides_is_not_permitted_rather_than_gone() -> None:
    lab.need_root()
    with lab.qemu("7.2") as vm:
        assert in_child(partial(_behind_hidepid, vm.pid), 10).startswith(b"NOT_PERMITTED")


def _behind_hidepid(pid: int) -> bytes:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(CLONE_NEWNS) == 0
    assert libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) == 0
    assert libc.mount(b"proc", b"/proc", b"proc", 0, b"hidepid=2") == 0
    return _as_nobody(f"pid:{pid}")


def _as_nobody(word: str) -> bytes:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    try:
        target.find_target(word, NOWHERE)
    except AutopsyError as error:
        return f"{error.exit_code.name} {error} {error.remedy}".encode()
    return b"found"


@pytest.mark.live
def test_a_process_whose_memory_map_is_locked_is_found_all_the_same() -> None:
    if not lab.kvm_works():
        lab.missing("needs /dev/kvm")
    with lab.file_system() as storage:
        ram = f"memory-backend-file,id=m,size=64M,mem-path={storage.mount}/ram,share=on"
        disk = ("-blockdev", "driver=null-co,node-name=n0,read-zeroes=on", "-device", "virtio-blk-pci,id=vd0,drive=n0")
        with (
            lab.qemu("7.2", "-object", ram, "-machine", "memory-backend=m", "-S", *disk, accelerate=lab.KVM, boots=True)
            as vm, lab.qemu("7.2", name="beside") as beside
        ):  # fmt: skip
            with lab.frozen(storage):
                vm.qmp(
                    "cont"
                )  # the first write to guest memory hangs, with the lock of the memory map held for reading
                lab.until("its vCPU hangs", lambda: lab.any_thread_in(vm.pid, "D"))
                with pytest.raises(TimeoutError):  # a large buffer is mmapped: the main thread waits for that lock
                    vm.qemu_io(lab.of_device("vd0"), "read 0 16M", within=0.5)
                told = qemu_processes.tell([vm.pid, beside.pid], each=0.3)
                assert not isinstance(told[beside.pid].arguments, qemu_processes.Unanswered)
                assert isinstance(told[vm.pid].arguments, qemu_processes.Unanswered)
                assert told[vm.pid].arguments.hung
                with found("beside") as held:
                    assert held.pid == beside.pid
                with found(str(vm.pid)) as held:
                    assert held.record.qemu_version.startswith(version(lab.build("7.2")))
                    assert str(vm.monitor) in [each.reachable for each in held.record.monitors]
                with found(f"qmp:{vm.monitor}") as held:
                    assert held.pid == vm.pid
            vm.process.send(signal.SIGKILL)
