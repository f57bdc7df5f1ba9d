"""Facts are read from whatever bytes a bundle holds, and nothing in them raises."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopsy.bundle import layout, records, syscalls
from autopsy.bundle.sections import Section, render
from autopsy.facts import command_line, threads
from autopsy.facts.cite import Known, Unknown
from autopsy.facts.gather import gather_facts
from autopsy.facts.model.facts import Park, Role, Syscall
from autopsy.facts.yield_points import park_point
from support.built import cases
from support.built import evidence as e

WHOLE = cases.frozen_threads().bundle()
PATHS = sorted(WHOLE.files)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**70) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(path=st.sampled_from(PATHS), data=st.binary(max_size=400))
def test_no_bytes_in_any_file_raise(path: str, data: bytes) -> None:
    gather_facts(e.Fake(WHOLE.manifest, {**WHOLE.files, path: data}))


@settings(max_examples=60, deadline=None)
@given(
    question=st.sampled_from(
        ["query-block", "query-blockstats", "query-named-block-nodes", "query-jobs", "query-status"]
    ),
    answer=JSON,
)
def test_no_answer_of_a_hostile_qemu_raises(question: str, answer: Any) -> None:
    case = e.Case()
    case.idle_threads()
    case.asked(question, answer)
    case.asked("x-debug-query-block-graph", answer)
    case.asked("query-iothreads", answer)
    gather_facts(case.bundle())


@settings(max_examples=60, deadline=None)
@given(words=st.lists(st.text(max_size=20), max_size=8))
def test_no_command_line_raises(words: list[str]) -> None:
    case = e.Case(command_line=("-drive", *words, "-blockdev", *words, "-device", *words))
    gather_facts(case.bundle())


@settings(max_examples=60, deadline=None)
@given(name=st.text(max_size=30), data=st.binary(max_size=120))
def test_no_section_raises(name: str, data: bytes) -> None:
    sections = [Section(each, data) for each in (name, f"task/7/{name}", "task/7/stat", "task/7/syscall", "fd/3")]
    files = {layout.evidence(step, file): render(sections) for step, file in ((layout.WITNESS, layout.TASKS),)}
    files[layout.evidence(layout.HOST, layout.HOST_FILES)] = render(sections)
    files[layout.evidence(layout.PROC_FDS, layout.FDS)] = render(sections)
    gather_facts(e.Fake(WHOLE.manifest, files))


def test_a_thread_s_name_may_hold_anything() -> None:
    case = e.Case()
    case.thread(e.PID, "a) S 1 (b", state="D")
    found = gather_facts(case.bundle()).threads
    assert isinstance(found, Known)
    assert isinstance(found.value[0].first, Known)
    assert found.value[0].first.value.state == "D"
    assert found.value[0].comm == "a) S 1 (b"


@pytest.mark.parametrize(
    ("comm", "call", "role"),
    [
        ("CPU 0/KVM", Syscall(None, ""), Role.VCPU),
        ("qemu-system-x86", Syscall(16, "ioctl", (14, 0xAE80)), Role.VCPU),
        ("IO mon_iothread", Syscall(None, ""), Role.MONITOR),
        ("IO iothread0", Syscall(None, ""), Role.IOTHREAD),
        ("worker", Syscall(None, ""), Role.WORKER),
        ("call_rcu", Syscall(None, ""), Role.CALL_RCU),
        ("mig/src/main", Syscall(None, ""), Role.MIGRATION),
        ("iou-wrk-4242", Syscall(None, ""), Role.KERNEL),
        ("anything", Syscall(None, ""), Role.OTHER),
    ],
)
def test_roles_are_told_by_name_or_by_what_a_thread_does(comm: str, call: Syscall, role: Role) -> None:
    assert threads.role(is_main=False, comm=comm, call=call, frames=()) is role


def test_a_vcpu_without_a_name_that_runs_is_known_by_its_frames() -> None:
    running, frames = Syscall(None, "running"), (e.frame("ioctl"), e.frame("kvm_vcpu_ioctl"), e.frame("kvm_cpu_exec"))
    assert threads.role(is_main=False, comm="qemu-system-x86", call=running, frames=frames) is Role.VCPU


@pytest.mark.parametrize(
    ("functions", "park"),
    [
        (e.THROTTLED, Park.THROTTLE),
        ((*e.MUTEX, "throttle_group_co_io_limits_intercept"), Park.THROTTLE_LOCK),
        (("qemu_coroutine_switch", "qemu_co_mutex_lock", "~commit_active_start", "~nbd_co_do_x"), Park.NBD_SEND),
        (e.NBD, Park.NBD_REPLY),
        (e.WORKERS, Park.THREADS),
        (e.NATIVE, Park.LINUX_AIO),
        (e.URING, Park.IO_URING),
        (("qemu_coroutine_switch", "monitor_qmp_dispatcher_co", "~qemu_coroutine_switch"), Park.MONITOR_IDLE),
        (("qemu_coroutine_switch", "qmp_dispatch", "~x", "monitor_qmp_dispatcher_co"), Park.QMP_COMMAND),
        ((*e.QUEUE, "~bdrv_co_x", "bdrv_co_pwritev_part"), Park.SERIALISING),
        ((*e.QUEUE, "~blk_co_x", "~blk_co_x"), Park.DRAINED),
        ((*e.YIELD, "~bdrv_cbw_drop", "~bdrv_co_flush", "bdrv_co_pwritev_part"), Park.DRIVER),
        ((*e.YIELD, "something_else"), Park.OTHER),
        ((), Park.OTHER),
    ],
)
def test_park_points_are_told_with_and_without_static_names(functions: tuple[str, ...], park: Park) -> None:
    assert park_point(tuple(e.frame(name) for name in functions))[0] is park


def test_a_command_line_is_read_in_both_its_forms() -> None:
    pairs = command_line.parse("driver=throttle,node-name=t,file.driver=raw,file.file.filename=/a,,b", "driver")
    assert command_line.string(pairs, "file", "file", "filename") == "/a,b"
    as_json = command_line.parse(
        json.dumps({"driver": "nbd", "server": {"type": "inet", "host": "h", "port": "1"}}), "driver"
    )
    assert command_line.string(as_json, "server", "host") == "h"
    assert command_line.string(command_line.parse("virtio-blk-pci,drive=d0", "driver"), "driver") == "virtio-blk-pci"


def test_a_disk_is_put_together_from_its_command_line_when_qmp_is_dead() -> None:
    case = e.Case()
    case.command_line = (
        "-object",
        "throttle-group,id=tg,x-bps-total=100",
        "-object",
        "iothread,id=io0",
        "-blockdev",
        "driver=throttle,node-name=top,throttle-group=tg,file.driver=file,file.filename=/vm/a.raw,file.aio=native",
        "-device",
        "virtio-blk-pci,id=vd0,drive=top,iothread=io0",
    )
    facts = gather_facts(case.bundle())
    assert isinstance(facts.disks, Known)
    (disk,) = facts.disks.value
    assert disk.name == "vd0"
    assert [node.driver for node in disk.nodes] == ["throttle", "file"]
    assert disk.nodes[1].aio == "native"
    assert disk.iothread == Known("io0", disk.iothread.cite) if isinstance(disk.iothread, Known) else False
    assert isinstance(facts.throttle_groups, Known)
    (group,) = facts.throttle_groups.value
    assert (group.name, group.members) == ("tg", ("vd0",))
    assert isinstance(group.limits, Known)
    assert group.limits.value.values == (("bps-total", 100),)


def test_a_missing_step_is_unknown_in_its_own_words() -> None:
    case = e.Case(outcomes={layout.GDB_THREADS: ("Failed", "gdb is not installed")})
    bundle = case.bundle().without(layout.evidence(layout.GDB_THREADS, layout.COROUTINES))
    found = gather_facts(bundle).coroutines
    assert isinstance(found, Unknown)
    assert "gdb is not installed" in found.why


def test_a_monitor_that_was_never_asked_is_not_a_dead_one() -> None:
    case = e.Case()
    case.asked("(greeting)", None, outcome="busy", peer="libvirtd (pid 1)")
    assert isinstance(gather_facts(case.bundle()).monitor.alive, Unknown)


def test_locks_are_read_from_futex_words_alone() -> None:
    bundle = cases.deadlock().bundle().without(layout.evidence(layout.GDB_THREADS, layout.LOCKS))
    found = gather_facts(bundle).locks
    assert isinstance(found, Known)
    assert found.value.cycles == ((e.PID + 50,),)


def test_an_eventfd_in_an_epoll_set_is_polled() -> None:
    case = e.Case(descriptors={5: "anon_inode:[eventpoll]", 6: "anon_inode:[eventfd]", 7: "anon_inode:[eventfd]"})
    case.info = {5: "pos:\t0\ntfd:        6 events:       19 data: 6\n", 7: "eventfd-count:                3\n"}
    case.polls = [records.PollSet(tid=9, call="epoll_wait", epoll_fd=5)]
    found = gather_facts(case.bundle()).descriptors
    assert isinstance(found, Known)
    polled = {each.fd: (each.polled_by, each.counter) for each in found.value}
    assert polled[6][0] == (9,)
    assert polled[7] == ((), 3)


def test_system_calls_have_one_name_each() -> None:
    assert len(set(syscalls.NAMES.values())) == len(syscalls.NAMES)


@pytest.mark.parametrize(
    ("places", "name"),
    [
        (("poll_schedule_timeout.constprop.0", "do_sys_poll", "do_restart_poll"), "poll"),
        (("poll_schedule_timeout.constprop.0",), "poll"),
        (("futex_do_wait", "__futex_wait", "futex_wait_restart"), "futex"),
        (("futex_wait_queue_me",), "futex"),
        (("hrtimer_nanosleep", "hrtimer_nanosleep_restart"), "clock_nanosleep"),
        ((), "restart_syscall"),
        (("somewhere_new",), "restart_syscall"),
    ],
)
def test_a_sleep_that_a_stop_has_interrupted_is_told_by_its_own_name(places: tuple[str, ...], name: str) -> None:
    line = "0x55d04f2064f0 0x1 0xffffffff 0x0 0x0 0x0 0x7f4a919ff8d0 0x7f4a9440e26f"
    found = threads.syscall(f"219 {line}", places)
    assert found.name == name
    assert found.restarted is (name != "restart_syscall")
    assert found.is_like(threads.syscall(f"7 {line}")) is (name == "poll")
