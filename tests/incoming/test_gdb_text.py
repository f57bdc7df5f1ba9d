"""Backtraces are read whatever stands around them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from autopsy.bundle.records import Frame
from autopsy.incoming.stacks.frame_line import frame
from autopsy.incoming.stacks.gdb_text import MOST_DEEP, MOST_LOOKS, scan
from autopsy.incoming.stacks.names import plain_name
from autopsy.incoming.stacks.pasted import Paste
from support.built import pastes

PLAIN = pastes.dump(
    ("CPU 0/KVM", (*pastes.LOCK_BQL, "prepare_mmio_access", *pastes.MMIO)),
    ("worker", ("__libc_pwrite64", "handle_aiocb_rw", "worker_thread", *pastes.STARTED)),
    ("qemu-system-x86", (*pastes.POLL, "bdrv_drained_begin", "blk_drain", *pastes.DISPATCH)),
)


def read(text: str) -> Paste:
    return scan(text.split("\n"))


def names(paste: Paste) -> list[tuple[int, str, tuple[str, ...]]]:
    return [
        (each.tid, each.comm, tuple(f.function for f in each.frames)) for look in paste.looks for each in look.threads
    ]


@pytest.mark.parametrize(
    "around",
    [
        pastes.quoted,
        pastes.wrapped,
        pastes.coloured,
        pastes.paged,
        pastes.in_markdown,
        pastes.escaped,
        pastes.numbered,
        pastes.with_journal,
        lambda text: pastes.quoted(pastes.wrapped(text)),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("#", "    #"),
        lambda text: "[New LWP 5001]\n[New LWP 5002]\nwarning: 44\t../sysdeps/x.c: No such file\n" + text,
        lambda text: text.replace("    ", "\t"),
    ],
)
def test_what_stands_around_a_dump_changes_nothing(around: Callable[[str], str]) -> None:
    assert names(read(around(PLAIN))) == names(read(PLAIN))
    assert len(names(read(PLAIN))) == 3


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "#0  __ppoll (fds=0x55, nfds=7) at ../sysdeps/unix/ppoll.c:42",
            Frame(pc=0, function="__ppoll", file="../sysdeps/unix/ppoll.c", line=42),
        ),
        (
            "#3  0x000055dbfb623b48 in aio_poll (ctx=0x1, blocking=blocking@entry=true) at ../util/aio-posix.c:730",
            Frame(pc=0x55DBFB623B48, function="aio_poll", file="../util/aio-posix.c", line=730),
        ),
        (
            "#23 0x00007f in g_main_context_dispatch () from target:/lib64/libglib-2.0.so.0",
            Frame(pc=0x7F, function="g_main_context_dispatch", module="/lib64/libglib-2.0.so.0"),
        ),
        ("#9  0x000055dbfb720a2d in ?? ()", Frame(pc=0x55DBFB720A2D)),
        ('#4  0x1 in f (s=0x2 "a \\"b) at x.c:1", t=...) at y.c:9', Frame(pc=1, function="f", file="y.c", line=9)),
        (
            "#4  0x1 in f (c=41 ')', d=40 '(' <repeats 12 times>, e=<error reading variable: no>) at y.c:9",
            Frame(pc=1, function="f", file="y.c", line=9),
        ),
        (
            "#5  0x1 in std::function<void (int)>::operator() (this=0x1) at /usr/include/std_function.h:591",
            Frame(
                pc=1,
                function="std::function<void (int)>::operator()",
                file="/usr/include/std_function.h",
                line=591,
            ),
        ),
        (
            "#5  0x1 in (anonymous namespace)::wait (this=0x1) at w.cc:3",
            Frame(pc=1, function="(anonymous namespace)::wait", file="w.cc", line=3),
        ),
        ("#7  <signal handler called>", Frame(pc=0, function="<signal handler called>")),
        ("#1  0x00007f5b poll - /lib64/libc.so.6", Frame(pc=0x7F5B, function="poll", module="/lib64/libc.so.6")),
        ("#1  0x00007f5b - /usr/bin/qemu-kvm", Frame(pc=0x7F5B, module="/usr/bin/qemu-kvm")),
        (
            "#0  0x00007f0b n/a (qemu-system-x86_64 (deleted) + 0x408c96)",
            Frame(pc=0x7F0B, module="qemu-system-x86_64", offset=0x408C96),
        ),
        (
            "#2  0x00007f0b __poll (libc.so.6 + 0xf5a9d)",
            Frame(pc=0x7F0B, function="__poll", module="libc.so.6", offset=0xF5A9D),
        ),
        (
            "#3  bdrv_poll_co (s=0x7) at block/block-gen.h:43",
            Frame(pc=0, function="bdrv_poll_co", file="block/block-gen.h", line=43, inlined=True),
        ),
        (
            "#1  schedule (../kernel/sched/core.c:4683:2)",
            Frame(pc=0, function="schedule", file="../kernel/sched/core.c", line=4683, inlined=True),
        ),
        ("#2  0x1 in job_exit.constprop.0 (opaque=0x5", Frame(pc=1, function="job_exit")),
    ],
)
def test_a_frame_of_each_tool_is_read(line: str, expected: Frame) -> None:
    assert frame(line) == expected


@pytest.mark.parametrize(
    ("shown", "plain"),
    [
        ("job_exit.constprop.0", "job_exit"),
        ("g_main_context_iterate.isra.19", "g_main_context_iterate"),
        ("raw_co_prw.part.0.cold", "raw_co_prw"),
        ("__GI___lll_lock_wait", "__lll_lock_wait"),
        ("__GI___pthread_mutex_lock", "__pthread_mutex_lock"),
        ("pthread_cond_wait@@GLIBC_2.3.2", "pthread_cond_wait"),
        ("__libc_recvfrom", "recvfrom"),
        ("foo.lto_priv.3", "foo"),
        ("blk_co_pdiscard.v2", "blk_co_pdiscard.v2"),
        ("??", ""),
        ("n/a", ""),
    ],
)
def test_a_function_is_known_whatever_the_compiler_hung_on_it(shown: str, plain: str) -> None:
    assert plain_name(shown) == plain


@pytest.mark.parametrize(
    ("header", "tid", "name"),
    [
        ('Thread 3 (Thread 0x7f01 (LWP 5001) "CPU 0/KVM"):', 5001, "CPU 0/KVM"),
        ('Thread 3 (Thread 0x7f01 (LWP 5001) "a \\"b (LWP 7) c"):', 5001, 'a \\"b (LWP 7) c'),
        ("Thread 3 (Thread 0x7f01 (LWP 5001)):", 5001, ""),
        ("Thread 3 (LWP 5001):", 5001, ""),
        ("Thread 3 (process 5001):", 5001, ""),
        ("TID 5001:", 5001, ""),
        ("Stack trace of thread 5001:", 5001, ""),
        ("[Switching to thread 3 (Thread 0x7f01 (LWP 5001))]", 5001, ""),
    ],
)
def test_a_thread_s_header_of_each_tool_is_read(header: str, tid: int, name: str) -> None:
    (look,) = read(f"{header}\n#0  0x1 in poll () from /lib/libc.so.6\n").looks
    assert [(each.tid, each.comm) for each in look.threads] == [(tid, name)]


def test_a_second_dump_is_a_second_look() -> None:
    paste = read(PLAIN + "\nfive seconds later:\n\n" + PLAIN)
    assert [len(look.threads) for look in paste.looks] == [3, 3]


def test_more_dumps_than_anybody_compares_are_bounded() -> None:
    assert len(read(PLAIN * 40).looks) == MOST_LOOKS


def test_a_plain_bt_twice_is_two_looks_at_one_thread() -> None:
    bt = "(gdb) bt\n" + "\n".join(pastes.frames((*pastes.POLL, "blk_drain", *pastes.DISPATCH))) + "\n"
    assert [[each.tid for each in look.threads] for look in read(bt + bt).looks] == [[1], [1]]


def test_locals_of_bt_full_are_no_frames() -> None:
    text = (
        '#0  0x1 in f (a=1) at a.c:1\n        ret = 5\n        s = {x = 1, name = "#1  0x2 in g ()"}\n'
        "#1  0x2 in g () at b.c:2\nNo locals.\n"
    )
    assert names(read(text)) == [(1, "", ("f", "g"))]


def test_what_python_said_in_the_middle_of_a_frame_goes() -> None:
    text = (
        "#0  0x1 in f (a=Python Exception <class 'AttributeError'> 'NoneType' object has no attribute 'pointer': \n"
        "...) at a.c:1\n#1  0x2 in g () at b.c:2\n"
    )
    assert names(read(text)) == [(1, "", ("f", "g"))]


def test_a_stack_that_was_cut_says_so() -> None:
    (look,) = read("Thread 1 (LWP 7):\n#0  0x1 in f ()\n(More stack frames follow...)\n").looks
    assert look.threads[0].cut_short == "more frames follow, and were not printed"
    (look,) = read("#0  0x1 in f ()\nBacktrace stopped: previous frame inner to this frame (corrupt stack?)\n").looks
    assert look.threads[0].cut_short.startswith("Backtrace stopped")


def test_a_stack_without_end_keeps_its_innermost_frames_and_says_how_deep_it_was() -> None:
    (look,) = read("\n".join(f"#{number}  0x1 in again ()" for number in range(MOST_DEEP + 500))).looks
    assert len(look.threads[0].frames) == MOST_DEEP
    assert "500 more frames" in look.threads[0].cut_short


def test_parked_coroutines_that_qemu_gdb_py_printed_are_coroutines() -> None:
    parked = ("qemu_coroutine_switch", "qemu_coroutine_yield", "nbd_receive_replies", "coroutine_trampoline")
    (look,) = read(PLAIN + "\n" + pastes.coroutine(0x7F0FBF018000, parked)).looks
    assert [(each.address, each.state) for each in look.coroutines] == [(0x7F0FBF018000, "parked")]
    (look,) = read(PLAIN + "\n(gdb) continue with the next\n\n" + "\n".join(pastes.frames(parked))).looks
    assert len(look.coroutines) == 1


def test_names_and_single_frames_come_from_info_threads() -> None:
    text = (
        "  Id   Target Id                                          Frame \n"
        '* 1    Thread 0x7f01 (LWP 5001) "qemu-system-x86" 0x1 in ppoll () from /lib/libc.so.6\n'
        '  2    Thread 0x7f02 (LWP 5002) "call_rcu" syscall () at ../sysdeps/syscall.S:38\n'
    )
    (look,) = read(text).looks
    assert [(each.tid, each.comm, each.frames[0].function) for each in look.threads] == [
        (5001, "qemu-system-x86", "ppoll"),
        (5002, "call_rcu", "syscall"),
    ]
    assert all(each.cut_short for each in look.threads)


def test_a_crash_and_the_program_are_told() -> None:
    paste = read(
        "Core was generated by `/usr/bin/kvm -id 102'.\nProgram terminated with signal SIGSEGV.\n#0  0x1 in f ()\n"
    )
    assert paste.crash == ("Program terminated with signal SIGSEGV.",)
    assert paste.program.startswith("/usr/bin/kvm -id 102")


def test_text_without_a_stack_holds_none() -> None:
    assert read("Dear all,\n\n#1 problem: it hangs.\nRegards\n").looks == ()
    assert read("# Heading\n#include <stdio.h>\n#12345 is the bug\n").looks == ()


def test_the_frame_that_gdb_shows_as_it_opens_a_core_is_no_thread() -> None:
    text = f"#0  0x1 in __ppoll () at x.c:1\n[Current thread is 1 (Thread 0x7f (LWP 4999))]\n\n{PLAIN}"
    assert names(read(text)) == names(read(PLAIN))


@pytest.mark.parametrize(
    ("text", "noted"),
    [
        ("(gdb) p bs->in_flight\n$1 = 3\n", ["gdb printed bs->in_flight: 3"]),
        (
            "(gdb) p ((BlockBackend *)0x1)->quiesce_counter\n$2 = 1\n",
            ["gdb printed ((BlockBackend *)0x1)->quiesce_counter: 1"],
        ),
        ("(gdb) p *bs\n$3 = {open_flags = 1, in_flight = 7, x = 0}\n", ["gdb printed *bs: in_flight: 7"]),
        ("(gdb) p lock\n$1 = {in_flight_x = 1}\n", []),
        ("in_flight = 9 of somebody's words\n", []),
    ],
)
def test_counts_of_requests_that_were_printed_are_told(text: str, noted: list[str]) -> None:
    assert [each for each in scan(text.splitlines()).notes if "printed" in each] == noted
