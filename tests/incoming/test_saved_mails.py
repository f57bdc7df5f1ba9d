"""Backtraces are read out of mails and patches as they were saved, and of one process where several were looked at."""

from __future__ import annotations

import quopri
from pathlib import Path

import pytest

from autopsy.incoming.stacks.gdb_text import scan
from support.built import pastes
from support.built.imported import diagnosis_of
from support.built.pastes import DISPATCH, IDLE_MAIN, LOCK, LOCK_BQL, MAIN, MMIO, POLL, STARTED
from tests.incoming.test_beside import material

RING = (
    ("CPU 0/KVM", (*LOCK, "virtio_x", *MMIO)),
    ("kvm", (*LOCK_BQL, "os_host_main_loop_wait", *MAIN)),
)
OWNERS = (
    "(gdb) print qemu_global_mutex\n$1 = {lock = {__data = {__owner = 5001, __kind = 0}}}\n"
    "(gdb) p *(pthread_mutex_t*)0x7f00000000a0\n$2 = {__data = {__owner = 5000, __kind = 0}}\n"
)


def functions(text: str) -> list[list[str]]:
    return [
        [frame.function for frame in each.frames] for look in scan(text.splitlines()).looks for each in look.threads
    ]


def test_a_mail_s_transfer_encoding_is_undone(tmp_path: Path) -> None:
    text = pastes.dump(*RING).replace("___pthread_mutex_lock ()", "___pthread_mutex_lock (mutex=0x7f00000000a0)", 1)
    mail = b"Content-Transfer-Encoding: quoted-printable\n\n" + quopri.encodestring((text + OWNERS).encode())
    assert b"=3D" in mail
    assert b"=\n" in quopri.encodestring(text.replace("()", "(a=0x1, b=0x2, c=0x3, d=<optimized out>)").encode())
    found = material(tmp_path, mail)
    assert {each.address for look in found.paste.looks for each in look.waits} == {0, 0x7F00000000A0}
    assert diagnosis_of(mail.decode(), tmp_path / "said").signature == "lock-cycle"


def test_frames_without_the_sign_that_git_takes_for_a_comment_s_are_read() -> None:
    text = "\n".join(pastes.frames((*LOCK, "vnc_x", *DISPATCH))).replace("#", "")
    assert functions(f"(gdb) bt\n{text}\n\nSigned-off-by: somebody\n 2 files changed, 3 insertions(+)\n") == [
        [name.removeprefix("__GI_") for name in (*LOCK, "vnc_x", *DISPATCH)]
    ]


@pytest.mark.parametrize(
    "line",
    [
        "44    ../sysdeps/unix/sysv/linux/ppoll.c: No such file or directory.",
        "1       breakpoint     keep y   0x000055d0 in main at x.c:1",
        "0 errors (none) at all",
        "2  items (of 3) from the list",
        "12 0x55d0 not a frame",
    ],
)
def test_other_lines_that_begin_with_a_number_are_no_frames(line: str) -> None:
    stack = "\n".join(pastes.frames(POLL))
    assert functions(f"{stack}\n{line}\n") == [list(POLL)]
    assert functions(line) == []


def test_the_frame_that_gdb_shows_of_a_thread_it_selects_is_no_stack_of_its_own() -> None:
    one, other = (*POLL, "bdrv_drain_all_begin", *DISPATCH), (*LOCK_BQL, "prepare_mmio_access", *MMIO)
    text = "".join(
        f"(gdb) thread {number}\n[Switching to thread {number} (Thread 0x7f00 (LWP {tid}))]\n"
        f"#0  {names[0]} (fds=0x1, \ntimeout=<optimized out>) at ../x.c:44\n44\t../x.c: No such file or directory.\n"
        "(gdb) bt\n" + "\n".join(pastes.frames(names)) + "\n\n"
        for number, tid, names in ((1, 358660, one), (4, 358668, other))
    )
    found = scan(text.splitlines())
    assert [(each.tid, len(each.frames)) for look in found.looks for each in look.threads] == [
        (358660, len(one)),
        (358668, len(other)),
    ]


def test_of_several_processes_that_were_looked_at_only_qemu_is_read(tmp_path: Path) -> None:
    shell = "\n".join(pastes.frames(("waitpid", "wait_for", "main")))
    own = pastes.dump(("kvm", IDLE_MAIN))
    text = (
        f"/proc/4196/cmdline:\nbash -c ./qemu-system-x86_64\ngstack 4196\n{shell}\n\n"
        f"/proc/5000/cmdline:\n./qemu-system-x86_64 -name web1 -m 64\ngstack 5000\n\n{own}\n"
        f"/proc/4300/cmdline:\nqemu-storage-daemon --blockdev x\ngstack 4300\n{own.replace('5000', '4300')}\n"
    )
    found = material(tmp_path, text.encode())
    assert [each.tid for look in found.paste.looks for each in look.threads] == [5000]


def test_a_poll_with_the_bql_held_for_an_iothread_that_wants_it_is_told(tmp_path: Path) -> None:
    stop = (*POLL, "aio_wait_bh_oneshot", "virtio_blk_stop_ioeventfd", "virtio_write_config", *MMIO)
    iothread = (*LOCK, "bql_lock_impl", "prepare_mmio_access", "vring_avail_idx", "aio_poll", "iothread_run", *STARTED)
    found = diagnosis_of(pastes.dump(("CPU 4/KVM", stop), ("IO iothread1", iothread)), tmp_path / "ring")
    assert (found.where, found.signature, found.confidence) == ("control", "lock-order-with-bql", "consistent")
    # A vCPU that only waits its turn is no part of a ring.
    found = diagnosis_of(pastes.dump(("CPU 4/KVM", stop), ("CPU 5/KVM", (*LOCK_BQL, *MMIO))), tmp_path / "healthy")
    assert found.signature != "lock-order-with-bql"


def test_a_client_s_output_lock_is_taken_twice(tmp_path: Path) -> None:
    stack = (*LOCK, "vnc_lock_output", "vnc_clipboard_send", "vnc_disconnect_finish", "vnc_client_io", *DISPATCH)
    assert diagnosis_of(pastes.dump(("kvm", stack)), tmp_path / "twice").signature == "lock-taken-twice"
    once = (*LOCK, "vnc_lock_output", "vnc_refresh", *DISPATCH)
    assert diagnosis_of(pastes.dump(("kvm", once)), tmp_path / "once").where == "unknown"


def test_a_device_that_is_started_over_a_silent_back_end_is_told(tmp_path: Path) -> None:
    stack = ("poll", "", "g_main_loop_run", "vhost_user_read", "vhost_user_get_features", "qdev_device_add", "main")
    found = diagnosis_of(pastes.dump(("kvm", stack)), tmp_path)
    assert (found.where, found.signature) == ("peer", "vhost-user-question")


def test_whoever_all_wait_for_is_told_with_where_it_stands(tmp_path: Path) -> None:
    text = pastes.dump(
        ("CPU 0/KVM", (*LOCK_BQL, "prepare_mmio_access", *MMIO)), ("kvm", (*POLL, "bdrv_drain_all_begin", *DISPATCH))
    )
    owner = "(gdb) p qemu_global_mutex\n$1 = {lock = {__data = {__owner = 5000, __kind = 0}}}\n"
    found = diagnosis_of(text + owner, tmp_path)
    assert found.where == "unknown"
    assert "bdrv_drain_all_begin" in found.headline
