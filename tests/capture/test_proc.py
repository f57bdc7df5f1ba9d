"""Descriptors, sockets with their other ends, and completion rings, of real processes."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopsy.bundle import layout
from autopsy.bundle.records import FutexWait, PollSet, Rings, SocketEnd
from autopsy.capture.proc import descriptors, socket_ends, witness
from autopsy.capture.proc import step as proc
from autopsy.capture.proc.aio import aio_ring, uring_state
from autopsy.capture.step import Collected, Deadline, Outcome, StepAtWork
from autopsy.linux import sock_diag
from autopsy.linux.mounts import mounts_of
from support import lab, looking

MANY = """
import ctypes, os, resource, select, time
resource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))
epoll = select.epoll()
counters = [os.eventfd(number) for number in range({count})]
epoll.register(counters[0], select.EPOLLIN)
timer = ctypes.CDLL(None).timerfd_create(1, 0)
print("ready", flush=True)
time.sleep(600)
"""


def collected(outcome: Outcome) -> str:
    assert isinstance(outcome, Collected), outcome
    return outcome.why


def test_a_thousand_descriptors_are_told_completely(tmp_path: Path) -> None:
    with looking.python(MANY.format(count=1000)) as pid, looking.scene(pid, tmp_path, layout.PROC_FDS) as at:
        collected(proc.fds(at))
        table = looking.found(at, layout.FDS)
        numbers = os.listdir(f"/proc/{pid}/fd")
        assert len(numbers) > 1000
        assert all(table[f"fd/{number}"].data and table[f"fdinfo/{number}"].data for number in numbers)
        counts = {
            int(section.data.split(b"eventfd-count:")[1].split()[0], 16)
            for section in table.values()
            if b"eventfd-count:" in section.data
        }
        assert counts == set(range(1000))
        links = {section.data for name, section in table.items() if name.startswith("fd/")}
        assert links >= {b"anon_inode:[eventpoll]", b"anon_inode:[timerfd]"}
        assert any(b"it_value" in section.data for section in table.values())
        assert any(b"tfd:" in section.data for section in table.values())


def test_ten_thousand_descriptors_are_told_up_to_a_bound_that_is_told(tmp_path: Path) -> None:
    with looking.python(MANY.format(count=10_000)) as pid, looking.scene(pid, tmp_path, layout.PROC_FDS) as at:
        collected(proc.fds(at))
        table = looking.found(at, layout.FDS)
    assert sum(name.startswith("fd/") for name in table) > 10_000
    assert sum(name.startswith("fdinfo/") for name in table) == descriptors.MOST_FDINFO
    assert "more descriptors were not read" in table["fdinfo (rest)"].error
    assert table["mountinfo"].data


@pytest.mark.live
@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
def test_a_stopped_nbd_server_is_seen_to_be_stopped(stock: lab.Build, short: Path, *, tcp: bool) -> None:
    with lab.nbd(lab.disk(short / "d.raw"), tcp=tcp) as server:
        blockdev = f"driver=nbd,node-name=n0,{server.server}"
        with (
            lab.qemu(stock, "-blockdev", blockdev) as vm,
            lab.stopped(server.process),
            looking.scene(vm.pid, short, layout.PROC_FDS) as at,
        ):
            collected(proc.fds(at))
            told = looking.found(at, layout.SOCKETS)
            ends = looking.decoded(at, layout.SOCKET_ENDS, list[SocketEnd])
    (end,) = (end for end in ends if server.process.pid in end.peer_pids)
    assert (end.family, end.state) == ("tcp" if tcp else "unix", "ESTAB")
    peer = f"peer/{server.process.pid}"
    assert told[f"{peer}/comm"].data == b"qemu-nbd\n"
    assert b"State:\tT (stopped)" in told[f"{peer}/status"].data
    assert b"do_signal_stop" in told[f"{peer}/stack"].data
    assert f"pid={server.process.pid}".encode() in told["ss"].data
    assert told["net/unix"].data.startswith(b"Num")
    assert told["net/tcp"].data


def test_what_the_other_end_has_not_read_is_counted(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.send(b"x" * 1000)
        with looking.scene(os.getpid(), tmp_path, layout.PROC_FDS) as at:
            collected(proc.fds(at))
            ends = {end.fd: end for end in looking.decoded(at, layout.SOCKET_ENDS, list[SocketEnd])}
        near, far = ends[ours.fileno()], ends[theirs.fileno()]
    assert far.receive_queue == 1000
    assert (near.send_queue or 0) >= 1000
    assert near.peer_inode == far.inode


def test_a_socket_whose_name_imitates_ss_deceives_nobody(tmp_path: Path) -> None:
    path = str(tmp_path / 'a 1 * 0 users:(("init",pid=1,fd=3))')[-100:]
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("\0" + path)
        listening.listen()
        with looking.scene(os.getpid(), tmp_path, layout.PROC_FDS) as at:
            collected(proc.fds(at))
            ends = {end.fd: end for end in looking.decoded(at, layout.SOCKET_ENDS, list[SocketEnd])}
        end = ends[listening.fileno()]
    assert (end.state, end.local, end.peer_pids) == ("LISTEN", "@" + path, ())


def test_a_target_in_another_network_namespace_has_its_own_sockets_told(tmp_path: Path) -> None:
    lab.need_root()
    code = """
import ctypes, socket, time
if ctypes.CDLL(None, use_errno=True).unshare(0x40000000):
    raise SystemExit(ctypes.get_errno())
listening = socket.socket(socket.AF_UNIX)
listening.bind("\\0autopsy-elsewhere")
listening.listen()
print("ready", flush=True)
time.sleep(600)
"""
    with looking.python(code) as pid, looking.scene(pid, tmp_path, layout.PROC_FDS) as at:
        collected(proc.fds(at))
        ends = looking.decoded(at, layout.SOCKET_ENDS, list[SocketEnd])
        told = looking.found(at, layout.SOCKETS)
    assert [end.local for end in ends if end.family != "pipe"] == ["@autopsy-elsewhere"]
    assert b"@autopsy-elsewhere" in told["ss"].data
    assert b"@autopsy-elsewhere" in told["net/unix"].data


@pytest.mark.live
def test_a_file_on_fuse_tells_its_mount_and_its_daemon(stock: lab.Build, short: Path) -> None:
    with lab.fuse(lab.disk(short / "d.raw")) as export:
        blockdev = f"driver=file,node-name=f0,filename={export.file}"
        with (
            lab.qemu(stock, "-blockdev", blockdev) as vm,
            lab.stopped(export.process),
            looking.scene(vm.pid, short, layout.PROC_FDS) as at,
        ):
            collected(proc.fds(at))
            told = looking.found(at, layout.SOCKETS)
    (mount,) = (section for name, section in told.items() if name.startswith("fuse/") and name.endswith("/mount"))
    assert str(export.file).encode() in mount.data
    daemon = told[mount.name.replace("/mount", "/daemon")].data.decode().split()
    assert str(export.process.pid) in daemon
    assert b"State:\tT (stopped)" in told[f"peer/{export.process.pid}/status"].data


@pytest.mark.live
def test_a_linux_aio_ring_is_found_and_read(stock: lab.Build, short: Path) -> None:
    image = lab.disk(short / "d.raw")
    drive = f"file={image},format=raw,id=disk0,if=none,aio=native,cache=none"
    with lab.qemu(stock, "-drive", drive, "-device", "virtio-blk-pci,drive=disk0") as vm:
        vm.qemu_io("disk0", "aio_write 0 4k")
        vm.qemu_io("disk0", "aio_flush")
        with looking.scene(vm.pid, short) as at:
            collected(witness.witness_threads(at))
        with looking.scene(vm.pid, short, layout.PROC_AIO) as at:
            collected(proc.aio(at))
            rings = looking.decoded(at, layout.RINGS, Rings)
            told = looking.found(at, layout.AIO)
    (ring,) = rings.aio
    assert ring.valid
    assert ring.entries >= 128
    assert ring.head == ring.tail
    assert int(told["sys/fs/aio-nr"].data) >= 128
    assert int(told["sys/fs/aio-max-nr"].data) >= 128
    assert b"write_bytes" in told["io"].data
    assert b"Threads:" in told["status"].data


@pytest.mark.live
@pytest.mark.parametrize("label", ["7.2", "10.0.2"])
def test_an_io_uring_tells_its_heads_and_tails(label: str, short: Path) -> None:
    image = lab.disk(short / "d.raw")
    drive = f"file={image},format=raw,id=disk0,if=none,aio=io_uring,cache=none"
    with lab.qemu(label, "-drive", drive, "-device", "virtio-blk-pci,drive=disk0") as vm:
        vm.qemu_io("disk0", "aio_write 0 4k")
        vm.qemu_io("disk0", "aio_flush")
        with looking.scene(vm.pid, short, layout.PROC_AIO) as at:
            collected(proc.aio(at))
            rings = looking.decoded(at, layout.RINGS, Rings)
    assert rings.uring
    assert any(ring.sq_tail for ring in rings.uring)
    for ring in rings.uring:
        assert ring.sq_head == ring.sq_tail
        assert ring.cq_head == ring.cq_tail
        assert "SqMask" in ring.raw


def test_only_a_main_thread_that_may_name_a_file_waits_for_what_the_core_tells(tmp_path: Path) -> None:
    """A FIFO stands for the file: to open it is to sleep in openat(2)."""
    os.mkfifo(tmp_path / "fifo")
    opening = f"import os; print('ready', flush=True); os.open({str(tmp_path / 'fifo')!r}, os.O_RDONLY)"
    waited = []
    for code in ("import time; print('ready', flush=True); time.sleep(600)", opening):
        other = subprocess.Popen(["sleep", "600"])  # the step that is at work
        pidfd = os.pidfd_open(other.pid)
        try:
            with looking.python(code) as pid, looking.scene(pid, tmp_path, layout.PROC_FDS) as at:
                lab.until("it sleeps", lambda pid=pid: lab.any_thread_in(pid, "S"))
                beside = replace(at, beside=StepAtWork(pidfd, Deadline(1.0)))
                began = time.monotonic()
                collected(proc.fds(beside))
                waited.append(time.monotonic() - began >= 1.0)
        finally:
            os.close(pidfd)
            other.kill()
            other.wait()
    assert waited == [False, True]


@pytest.mark.live
def test_the_second_exposure_takes_all_that_moves(stock: lab.Build, short: Path) -> None:
    image = lab.disk(short / "d.raw")
    drive = f"file={image},format=raw,id=disk0,if=none,aio=native,cache=none"
    with lab.qemu(stock, "-drive", drive, "-device", "virtio-blk-pci,drive=disk0") as vm:
        vm.qemu_io("disk0", "read 0 4k")  # since 8.1, QEMU sets its ring up for the first request
        with looking.scene(vm.pid, short) as at:
            collected(witness.witness_threads(at))
        with looking.scene(vm.pid, short, layout.SECOND_EXPOSURE) as at:
            collected(proc.tasks_again(at))
            collected(proc.fds_again(at))
            assert looking.found(at, layout.TASKS)[f"task/{vm.pid}/stat"].data
            assert looking.found(at, layout.FDS)["fd/0"].data == b"/dev/null"
            assert looking.found(at, layout.AIO)["io"].data
            assert looking.found(at, layout.SOCKETS)["ss"].data
            assert any(name.endswith("/inflight") for name in looking.found(at, layout.HOST_FILES))
            assert looking.decoded(at, layout.FUTEXES, list[FutexWait])
            assert looking.decoded(at, layout.POLLS, list[PollSet])
            assert looking.decoded(at, layout.RINGS, Rings).aio
        with looking.scene(vm.pid, short, layout.PROC_STACKS) as at:
            collected(proc.stacks(at))
            assert looking.found(at, layout.TASKS)[f"task/{vm.pid}/stack"].data


def test_an_address_reads_as_the_kernel_means_it() -> None:
    table = (
        b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        b"   0: 0100007F:2A39 0200007F:C350 01 00000010:00000020 00:00000000 00000000     0        0 4711 1 0 0\n"
        b"   1: 0000000000000000FFFF00000100007F:0050 B80D01200000000000000000010000 0A 0 0 0 0 0 0 0\n"
        b"   2: 00000000000000000000000001000000:0050 0000000000000000FFFF00000200007F:0051 0A 0:0 0 0 0 0 12 1\n"
    )
    first, second = socket_ends.tcp_sockets(table)
    assert (first.local, first.remote, first.inode) == ("127.0.0.1:10809", "127.0.0.2:50000", 4711)
    assert (first.send_queue, first.receive_queue, first.state) == (16, 32, 1)
    assert (second.local, second.remote) == ("[::1]:80", "127.0.0.2:81")


@given(st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    socket_ends.tcp_sockets(b"header\n" + data)
    mounts_of(data)
    uring_state(3, data)
    for _, body in sock_diag.messages(data):
        sock_diag.unix_socket(body)
    sock_diag.unix_socket(data)
    if len(data) >= 32:
        aio_ring(0, data[:32])


def test_a_header_that_contradicts_itself_is_no_ring() -> None:
    good = struct.pack("<8I", 0, 128, 3, 5, 0xA10A10A1, 1, 0, 32)
    assert aio_ring(4096, good).valid
    assert not aio_ring(4096, struct.pack("<8I", 0, 128, 300, 5, 0xA10A10A1, 1, 0, 32)).valid
    assert not aio_ring(4096, bytes(32)).valid
