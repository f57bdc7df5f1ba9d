from __future__ import annotations

import threading
from contextlib import suppress
from functools import partial

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopsy.bundle import layout, sections
from autopsy.bundle.records import Frame, LockGraph, MainLoop, Mutex, PollFd, PollSet
from autopsy.drill.machine import Machine, QmpRefused
from autopsy.examine import run
from autopsy.examine.core.reader import CoreThread, Registers
from autopsy.examine.states import ThreadState, tasks
from autopsy.examine.threads.main_loop import command_in, nested_under, what_it_does
from autopsy.examine.threads.poll_sets import epoll_sets, eventfds, polled
from support import lab, snapshot

MAIN = 100
NOBODY = LockGraph(mutexes=(), others=(), cycles=())
PPOLL, FSTAT, FUTEX = 271, 5, 202


def frames(*functions: str) -> tuple[Frame, ...]:
    return tuple(Frame(pc=number, function=name) for number, name in enumerate(functions, start=1))


def thread(orig_rax: int) -> CoreThread:
    return CoreThread(MAIN, Registers(*[0] * 27)._replace(orig_rax=orig_rax & (1 << 64) - 1))


AT_REST = frames("__ppoll", "qemu_poll_ns", "os_host_main_loop_wait", "main_loop_wait", "qemu_main_loop", "main")
STRIPPED_AT_REST = frames("__ppoll", "qemu_poll_ns", "", "main_loop_wait", "qemu_main_loop", "")
DRAINING = frames(
    *("__ppoll", "", "fdmon_poll_wait", "aio_poll", "bdrv_drain_all_begin", "vm_stop", "qmp_stop", "qmp_marshal_stop"),
    *("", "aio_bh_poll", "aio_dispatch", "", "g_main_context_dispatch", "main_loop_wait", "qemu_main_loop"),
)


@pytest.mark.parametrize("stack", [AT_REST, STRIPPED_AT_REST])
def test_a_loop_at_rest_is_idle_whoever_seems_to_own_the_bql(stack: tuple[Frame, ...]) -> None:
    graph = LockGraph(mutexes=(), others=(), cycles=(), bql_address=1, bql_owner=MAIN)
    assert what_it_does(thread(PPOLL), None, stack, graph).state == "idle"


def test_a_drain_is_a_nested_poll_under_its_function() -> None:
    doing = what_it_does(thread(PPOLL), None, DRAINING, NOBODY)
    assert (doing.state, doing.under) == ("nested poll", "bdrv_drain_all_begin")
    assert command_in(DRAINING) == "qmp_stop"


def test_a_poll_of_two_levels_is_told_by_the_outermost() -> None:
    stack = frames("__ppoll", "fdmon_poll_wait", "aio_poll", "blk_pread", "aio_poll", "blk_drain", "main_loop_wait")
    assert nested_under(stack) == "blk_drain"


def test_an_event_loop_of_io_uring_without_aio_poll_is_not_nested() -> None:
    stack = frames("syscall", "io_uring_submit_and_wait", "fdmon_io_uring_wait", "main_loop_wait", "qemu_main_loop")
    assert nested_under(stack) == ""


def test_a_poll_of_somebody_else_inside_the_loop_is_a_blocked_call() -> None:
    stack = frames("__poll", "qio_channel_wait", "qio_channel_readv_full_all", "tcp_chr_sync_read", "main_loop_wait")
    doing = what_it_does(thread(7), None, stack, NOBODY)
    assert (doing.state, doing.under) == ("blocked in a system call", "poll")
    assert "tcp_chr_sync_read" in doing.why


@pytest.mark.parametrize(("owner", "state"), [(MAIN, "nested poll"), (0, "idle")])
def test_without_a_stack_the_owner_of_the_bql_decides(owner: int, state: str) -> None:
    graph = LockGraph(mutexes=(), others=(), cycles=(), bql_address=1, bql_owner=owner)
    assert what_it_does(thread(PPOLL), None, (), graph).state == state


def test_without_a_stack_and_without_the_bql_nothing_is_claimed() -> None:
    assert what_it_does(thread(PPOLL), None, (), NOBODY).state == "unknown"


def test_a_main_thread_that_waits_for_the_bql_says_on_whom() -> None:
    held = Mutex(
        address=5, owner=7, owner_comm="CPU 0/KVM", kind="normal", count=0, waiters=(MAIN,), place="q+5", is_bql=True
    )
    graph = LockGraph(mutexes=(held,), others=(), cycles=())
    stack = frames("futex_wait", "__GI___lll_lock_wait", "___pthread_mutex_lock", "qemu_mutex_lock_impl", "aio_bh_poll")
    doing = what_it_does(thread(FUTEX), None, stack, graph)
    assert (doing.state, doing.waits_for, doing.waits_on_tid) == ("waits for a mutex", 5, 7)
    assert doing.under == "aio_bh_poll"
    assert "CPU 0/KVM" in doing.why


def test_a_call_that_hangs_is_told_with_its_wchan() -> None:
    doing = what_it_does(thread(FSTAT), ThreadState(MAIN, state="D", wchan="nfs_wait"), (), NOBODY)
    assert (doing.state, doing.under) == ("blocked in a system call", "fstat")
    assert "nfs_wait" in doing.why


def test_a_stopped_process_is_stopped_before_anything_else() -> None:
    assert what_it_does(thread(PPOLL), ThreadState(MAIN, state="T"), DRAINING, NOBODY).state == "stopped"


def test_a_frozen_cgroup_is_a_stop() -> None:
    assert (
        what_it_does(thread(PPOLL), ThreadState(MAIN, state="S", wchan="do_freezer_trap"), AT_REST, NOBODY).state
        == "stopped"
    )


def test_a_thread_outside_system_calls_runs() -> None:
    assert what_it_does(thread(-1), ThreadState(MAIN, state="R"), frames("qemu_lsi_spin"), NOBODY).state == "running"


@pytest.mark.parametrize(
    ("functions", "command"),
    [
        (("aio_poll", "qmp_marshal_block_resize", "do_qmp_dispatch_bh"), "qmp_block_resize"),
        (("hmp_qemu_io", "handle_hmp_command", "qmp_human_monitor_command", "qmp_dispatch"), "hmp_qemu_io"),
        (("monitor_qmp_dispatcher_co", "qmp_dispatch", "do_qmp_dispatch_bh"), ""),
        (("aio_poll", "vm_stop", "migration_thread"), ""),
    ],
)
def test_a_command_is_told_by_the_innermost_function_of_one(functions: tuple[str, ...], command: str) -> None:
    assert command_in(frames(*functions)) == command


@given(
    st.integers(0, (1 << 64) - 1),
    st.lists(st.sampled_from(("aio_poll", "main_loop_wait", "__ppoll", "", "qmp_stop")) | st.text(), max_size=8),
    st.builds(
        ThreadState, tid=st.just(MAIN), state=st.sampled_from(("", "S", "D", "T", "R")), wchan=st.text(max_size=5)
    ),
)
def test_any_stack_and_any_call_give_an_answer(orig_rax: int, functions: list[str], task: ThreadState) -> None:
    doing = what_it_does(thread(orig_rax), task, frames(*functions), NOBODY)
    assert doing.why
    command_in(frames(*functions))


@given(st.binary(max_size=300) | st.lists(st.binary(max_size=40), max_size=5).map(b"\n".join))
def test_any_bytes_are_tasks_and_polls_or_none(data: bytes) -> None:
    wrapped = sections.render([sections.Section("task/7/stat", data), sections.Section("fdinfo/9", b"tfd: " + data)])
    for read in (lambda _: data, lambda _: wrapped):
        tasks(read)
        polled(read)
        epoll_sets(read)


def test_a_state_stands_behind_the_last_parenthesis() -> None:
    stat = sections.Section("task/7/stat", b"7 (a) R (b) D 1 2 3\n")
    found = tasks(lambda path: sections.render([stat]) if path.endswith(layout.TASKS) else b"")
    assert found[7].state == "D"


def test_an_fd_inside_an_epoll_set_that_a_thread_sleeps_on_is_polled() -> None:
    sets = [
        PollSet(tid=1, call="ppoll", fds=(PollFd(fd=3, events=1, revents=0),)),
        PollSet(tid=2, call="epoll_wait", epoll_fd=9),
    ]
    fdinfo = b"pos:\t0\nflags:\t02\ntfd:        5 events:       19 data:  5 pos:0 ino:1 sdev:e\n"
    stored = {
        layout.evidence(layout.WITNESS, layout.POLLS): msgspec.json.encode(sets),
        layout.evidence(layout.WITNESS, layout.FDS): sections.render([sections.Section("fdinfo/9", fdinfo)]),
    }
    assert polled(lambda path: stored.get(path, b"")) == {3, 5}
    del stored[layout.evidence(layout.WITNESS, layout.FDS)]
    assert polled(lambda path: stored.get(path, b"")) is None


def read_from(stored: dict[str, bytes], path: str) -> bytes:
    return stored.get(path, b"")


def test_an_fd_that_a_ring_may_poll_is_not_called_unheard() -> None:
    """io_uring's fdinfo as Linux 6.x prints it: a poll request, without its fd."""
    ring = b"pos:\t0\nSqMask:\t0x7f\nUserFiles:\t0\nPollList:\n  op=6, task_works=0\nCqOverflowList:\n"
    silent = ring.replace(b"  op=6, task_works=0\n", b"")
    eventfd = b"pos:\t0\neventfd-count:                2\neventfd-id: 7\n"
    sets = msgspec.json.encode([PollSet(tid=1, call="ppoll", fds=(PollFd(fd=3, events=1, revents=0),))])
    for kind, answer in ((ring, None), (silent, False)):
        infos = [sections.Section(f"fdinfo/{fd}", data) for fd, data in ((3, eventfd), (4, eventfd), (9, kind))]
        stored = {
            layout.evidence(layout.WITNESS, layout.POLLS): sets,
            layout.evidence(layout.WITNESS, layout.FDS): sections.render(infos),
        }
        told = eventfds(partial(read_from, stored))
        assert [(each.fd, each.count, each.polled, each.count_again) for each in told] == [
            (3, 2, True, None),
            (4, 2, answer, None),
        ]


def ask_and_wait_for_nothing(machine: Machine, command: str) -> threading.Thread:
    """Ask what will not be answered before the machine is killed."""

    def ask() -> None:
        with suppress(OSError, TimeoutError, ValueError, QmpRefused):
            machine.qmp(command, within=30)

    asker = threading.Thread(target=ask, daemon=True)
    asker.start()
    return asker


@pytest.mark.live
def test_a_stop_that_drains_for_ever_is_a_nested_poll_in_every_qemu(build: lab.Build) -> None:
    with (
        lab.folder() as place,
        lab.nbd(lab.disk(place / "d.raw")) as server,
        lab.qemu(
            build,
            *("-blockdev", f"driver=nbd,node-name=nbd0,{server.server}"),
            *("-device", "virtio-blk-pci,drive=nbd0,id=vd0"),
        ) as machine,
    ):
        with snapshot.exposed(machine) as exposed:
            run.examine_core(exposed.frozen)
            before = exposed.record(layout.MAIN_LOOP, MainLoop)
        with lab.stopped(server.process):
            machine.qemu_io(lab.of_device("vd0"), "aio_write 0 4k")
            asker = ask_and_wait_for_nothing(machine, "stop")
            lab.until("the main thread is in its nested poll", lambda: in_nested_poll(machine.pid))
            with snapshot.exposed(machine) as exposed:
                run.examine_core(exposed.frozen)
                after = exposed.record(layout.MAIN_LOOP, MainLoop)
                graph = exposed.record(layout.LOCKS, LockGraph)
        asker.join(20)
    assert (before.state, before.command, before.tid) == ("idle", "", machine.pid)
    assert (after.state, after.command) == ("nested poll", "qmp_stop")
    assert after.under in ("bdrv_drain_all_begin", "bdrv_do_drained_begin", "blk_drain")
    assert graph.bql_owner == machine.pid


def in_nested_poll(pid: int) -> bool:
    """Return whether the main thread polls fewer than four fds: an AioContext's own, not the main loop's."""
    with open(f"/proc/{pid}/task/{pid}/syscall", encoding="ascii") as stream:
        words = stream.read().split()
    return words[0] == str(PPOLL) and int(words[2], 16) < 4
