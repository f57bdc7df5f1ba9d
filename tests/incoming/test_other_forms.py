"""Forms in which stacks reach a forum: another debugger's, a colour without its escape, a kernel's own words."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from support.built import pastes
from support.built.imported import diagnosis_of, facts_of
from support.built.pastes import DISPATCH, LOCK, POLL, STARTED

WRITER = (*POLL, "bdrv_graph_wrlock", "blk_remove_bs", "job_exit", *DISPATCH)
WANTING = (*LOCK, "qemu_rec_mutex_lock_impl", "aio_context_acquire", "aio_co_wake", "iothread_run", *STARTED)
BOTH = pastes.dump(("IO iothread0", WANTING), ("kvm", WRITER))
TOLD = "the main thread {} wants to change the graph, and thread {} (IO iothread0) waits for an AioContext"


def in_lldb(*, tids: bool) -> str:
    """Return both stacks as `bt all` of lldb prints them."""
    lines = ["(lldb) bt all"]
    for number, name, functions in ((1, "kvm", WRITER), (2, "IO iothread0", WANTING)):
        tid = f" tid = {4999 + number}," if tids else ""
        lines.append(
            f"{'*' if number == 1 else ' '} thread #{number},{tid} name = '{name}', stop reason = signal SIGSTOP"
        )
        for at, function in enumerate(functions):
            place = f"(ctx=0x0000) at x.c:{at + 1}:9 [opt]" if at % 2 else f" + {at + 4}"
            lines.append(
                f"  {'*' if not at else ' '} frame #{at}: 0x{0x5640 + at:016x} qemu-system-x86_64`{function}{place}"
            )
    return "\n".join(lines) + "\n"


def by_a_sanitizer(functions: tuple[str, ...]) -> str:
    return "".join(f"    #{at} 0x{0x5640 + at:x} in {name} ../x.c:{at + 1}:9\n" for at, name in enumerate(functions))


FORMS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("colours without their escape", lambda text: pastes.coloured(text).replace("\x1b", "")),
    ("a board's tags around", lambda text: f"[CODE]{text}[/CODE]"),
    ("lines that end as on old Macs", lambda text: text.replace("\n", "\r")),
    ("how far into each function it is", lambda text: text.replace(" () at", " + 0x1c () at")),
    ("no sign before the numbers", lambda text: text.replace("#", "")),
    (
        "no numbers at all",
        lambda text: re.sub(r"(?m)^#0 +", "0x00005555 in ", re.sub(r"(?m)^#[1-9]\d* +", "  ", text)),
    ),
)


@pytest.mark.parametrize(("form", "written"), FORMS)
def test_the_form_of_a_paste_changes_nothing(form: str, written: Callable[[str], str], tmp_path: Path) -> None:
    found = diagnosis_of(written(BOTH), tmp_path)
    assert TOLD.format(5000, 5001) in found.headline, form


def test_what_lldb_prints_is_read_as_what_gdb_does(tmp_path: Path) -> None:
    found = diagnosis_of(in_lldb(tids=True), tmp_path / "tids")
    assert TOLD.format(5000, 5001) in found.headline
    found = diagnosis_of(in_lldb(tids=False), tmp_path / "numbers")
    assert TOLD.format(1, 2) in found.headline


def test_where_gdb_has_stopped_is_no_stack_of_its_own(tmp_path: Path) -> None:
    stopped = "[New LWP 5001]\n0x00007fa224155136 in __ppoll (fds=0x5648fdf2ce50, nfds=2) at ppoll.c:42\n"
    assert diagnosis_of(stopped + BOTH, tmp_path / "both").headline == diagnosis_of(BOTH, tmp_path / "stacks").headline
    assert facts_of(stopped, tmp_path / "alone").threads == facts_of("prose\n", tmp_path / "none").threads


def test_a_sanitizer_s_stack_has_names_without_their_files(tmp_path: Path) -> None:
    found = diagnosis_of(by_a_sanitizer(WRITER), tmp_path)
    assert (found.where, found.signature) == ("block", "graph-lock-against-context")
    assert "x.c" not in found.headline


IN_NFS = ("folio_wait_bit_common", "nfs_wait_on_request", "nfs_file_write", "vfs_write", "__x64_sys_pwrite64")
RESTING = ("futex_wait_queue", "futex_wait", "do_futex", "__x64_sys_futex")


def in_the_kernel(*functions: str, sign: str = "[<0>] ") -> str:
    return "".join(f"{sign}{name}+0x1a/0x40\n" for name in functions)


NFS_TASK = f"{in_the_kernel('__schedule', 'io_schedule', *IN_NFS, sign='[1.0]  ')}[1.0]  </TASK>\n"
KVM = "[1.0] task:kvm state:{} stack:0 pid:4243 tgid:4242 ppid:1\n[1.0] Call Trace:\n"
TWO_THREADS = (
    f"==> /proc/4242/task/4242/stack <==\n{in_the_kernel(*RESTING)}\n"
    f"==> /proc/4242/task/4243/stack <==\n{in_the_kernel(*IN_NFS)}"
)
ANOTHER_S = (
    f"[1.0] task:rsync state:D stack:0 pid:77 tgid:77 ppid:1\n[1.0] Call Trace:\n{NFS_TASK}"
    f"{KVM.format('S')}{in_the_kernel(*RESTING, sign='[1.0]  ')}"
)


@pytest.mark.parametrize(
    "text",
    [
        in_the_kernel(*IN_NFS),
        f"# cat /proc/4242/task/4243/stack\n{in_the_kernel(*IN_NFS)}",
        TWO_THREADS,
        f"[1.0] sysrq: Show Blocked State\n{KVM.format('D')}{NFS_TASK}",
    ],
)
def test_a_stack_in_the_kernel_that_was_pasted_is_told(text: str, tmp_path: Path) -> None:
    found = diagnosis_of(text, tmp_path)
    assert (found.where, found.signature, found.confidence) == ("peer", "host-nfs-wait", "consistent")
    assert "1 thread" in found.headline


@pytest.mark.parametrize("text", [f"# cat /proc/4242/stack\n{in_the_kernel(*RESTING)}", ANOTHER_S])
def test_a_thread_that_rests_there_is_no_finding_nor_is_another_program(text: str, tmp_path: Path) -> None:
    assert diagnosis_of(text, tmp_path).where == "unknown"
