"""Slow is not stuck: a peer is proven silent only beyond what its disk's past explains, or where it cannot move."""

from __future__ import annotations

import msgspec
import pytest

from autopsy.bundle import layout, records
from autopsy.bundle.sections import Section
from autopsy.cli.json_output import verdict as answer
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from support.built import cases, families
from support.built import evidence as e


def told(case: e.Case) -> Diagnosis:
    return diagnose(gather_facts(case.bundle()))


def silent_server(*, state: str, idle: float, mean: float, socket: str = "ESTAB") -> e.Case:
    """Return a VM with one request at an NBD server, by that process's State, the disk's silence and mean latency."""
    case = e.Case()
    case.idle_threads()
    case.parked(e.NBD)
    case.monitor()
    case.disks(e.disk("d0", file="nbd+unix:///?socket=/run/nbd.sock", idle_ns=int(idle * e.SECOND)))
    for exchanges in case.exchanges.values():
        for exchange in exchanges:
            if exchange.question == "query-blockstats":
                exchange.answer[0]["stats"]["rd_total_time_ns"] = int(100 * mean * e.SECOND)
    case.command_line = ("-drive", "file=nbd+unix:///?socket=/run/nbd.sock,format=raw,if=none,id=d0")
    end = records.SocketEnd(fd=11, inode=77, family="unix", state=socket, remote="/run/nbd.sock", peer_pids=(900,))
    case.ends.append(end)
    status = f"Name:\tserver\nState:\t{state}\n".encode()
    case.peer_sections += [Section("peer/900/comm", b"server\n"), Section("peer/900/status", status)]
    return case


@pytest.mark.parametrize(
    ("state", "idle", "mean", "sure"),
    [
        ("S (sleeping)", 0.6, 1.0, "likely"),  # it answers one a second, and was looked at for less
        ("S (sleeping)", 20.0, 20.0, "likely"),  # it answers after 20 s
        ("S (sleeping)", 60.0, 10.0, "likely"),
        ("S (sleeping)", 60.0, 0.001, "proven"),
        ("T (stopped)", 0.6, 1.0, "proven"),
    ],
)
def test_a_server_is_proven_silent_only_beyond_what_its_past_explains(
    state: str, idle: float, mean: float, sure: str
) -> None:
    found = told(silent_server(state=state, idle=idle, mean=mean))
    assert (found.signature, found.confidence) == ("nbd-silent", sure)
    assert found.since.startswith(f"disk d0: its last request ended {idle:.1f} s before the last look")


def test_a_disk_that_never_completed_anything_has_no_past() -> None:
    case = silent_server(state="S (sleeping)", idle=600, mean=0)
    for exchanges in case.exchanges.values():
        for exchange in exchanges:
            if exchange.question == "query-blockstats":
                del exchange.answer[0]["stats"]["idle_time_ns"]
    assert (told(case).confidence, told(case).since) == ("likely", "")


def test_a_half_closed_connection_is_no_slow_server() -> None:
    case = silent_server(state="S (sleeping)", idle=1, mean=1, socket="CLOSE-WAIT")
    assert told(case).confidence == "proven"


def throttled(*, waiting: int, done: int) -> e.Case:
    case = e.Case()
    case.idle_threads()
    case.parked(e.THROTTLED_LEGACY, waiting)
    case.monitor()
    case.disks(e.disk("d0", "vd0", before=100, after=100 + done, iops=1, group="d0"))
    return case


def test_a_disk_at_its_own_limit_is_slow_and_told_with_its_figure() -> None:
    found = told(throttled(waiting=40, done=5))
    assert found.where == "none"
    assert "slow, at QEMU's own limit: 40 requests waited" in found.headline
    assert "about 20 s" in found.headline  # 5 reads and 5 writes in 5 s


def test_a_disk_whose_requests_soon_get_their_turn_is_not_called_slow() -> None:
    found = told(throttled(waiting=4, done=50))
    assert (found.where, "slow" in found.headline) == ("none", False)


def migrating(rate: int) -> Diagnosis:
    """Return what is said of a VM whose migration sends so many KiB a second, with 64 MiB to go."""
    case = cases.healthy_idle()
    for number, step in enumerate((layout.QUERY_STATUS, layout.SECOND_EXPOSURE)):
        ram = {"transferred": (1000 + 5 * number * rate) << 10, "remaining": 64 << 20}
        case.asked("query-migrate", {"status": "active", "ram": ram}, step=step)
        last = case.exchanges[step][-1]
        case.exchanges[step][-1] = msgspec.structs.replace(last, asked_ns=last.asked_ns + 5 * number * e.SECOND)
    return told(case)


def test_a_migration_that_creeps_is_told_with_its_figure_beside_a_healthy_vm() -> None:
    found = migrating(80)
    assert found.where == "none"
    assert "the migration is slow: it sent 400 KiB in 5.0 s (80 KiB/s)" in found.headline


def test_a_migration_at_a_network_s_pace_is_not_called_slow() -> None:
    found = migrating(100 << 10)
    assert (found.where, "slow" in found.headline) == ("none", False)


def uncounted(iops: int) -> Diagnosis:
    """Return what is said of requests behind a limit where nobody counted what passed them."""
    case = throttled(waiting=40, done=0)
    for step, exchanges in case.exchanges.items():
        case.exchanges[step] = [each for each in exchanges if each.question != "query-blockstats"]
    limit = f"throttling.iops-total={iops}"
    case.command_line = ("-drive", f"if=none,id=d0,{limit}", "-device", "virtio-blk-pci,drive=d0,id=vd0")
    for exchange in case.exchanges[layout.QUERY_BLOCK]:
        if exchange.question == "query-block":
            exchange.answer[0]["inserted"]["iops"] = iops
    return told(case)


def test_whether_a_limit_lets_others_pass_is_not_known_where_nobody_counted_them() -> None:
    assert uncounted(iops=1).where == "unknown"


def test_counters_tell_that_a_limit_lets_none_pass() -> None:
    found = told(throttled(waiting=40, done=0))
    assert (found.where, found.signature) == ("throttle", "throttle-timer-wait")


def test_two_causes_that_do_not_wait_for_one_another_are_told_each_with_its_own_disks() -> None:
    case = cases.frozen_threads()
    case.parked(e.NBD)
    for step in (layout.QUERY_BLOCK, layout.QUERY_STATUS, layout.SECOND_EXPOSURE):
        case.exchanges[step] = []
    case.monitor()
    case.disks(e.disk("d0", file="/mnt/vm/disk.raw"), e.disk("d1", file="nbd://storage:10809"))
    case.command_line = (
        *("-drive", "file=/mnt/vm/disk.raw,if=none,id=d0"),
        *("-drive", "file=nbd://storage:10809,format=raw,if=none,id=d1"),
    )
    causes = {each.signature: each.objects for each in answer(told(case)).causes}
    assert set(causes) == {"host-fs-frozen", "nbd-silent"}
    assert "d0" in causes["host-fs-frozen"]
    assert "d0" not in causes["nbd-silent"]
    assert "d1" in causes["nbd-silent"]


def test_an_effect_is_no_cause_of_its_own() -> None:
    found = told(cases.nbd())
    assert [each.signature for each in found.causes] == [found.signature]


@pytest.mark.parametrize(
    "stack",
    [("request_wait_answer", "fuse_simple_request"), ("nfs_wait_bit_killable",)],
)
@pytest.mark.parametrize("served", [0, 2])
def test_storage_that_serves_some_of_many_waiting_threads_is_slow_and_not_proven_dead(
    stack: tuple[str, ...], served: int
) -> None:
    case = families.in_kernel(*stack)
    for number in range(served):
        task = case.thread(e.PID + 200 + number, "worker", state="D", syscall=cases.PWRITE, stack=stack, switches=40)
        task.later = {"state": "S", "syscall": e.IDLE_WORKER, "stack": e.IDLE_STACK}
    found = told(case)
    assert found.where == "peer"
    assert found.confidence == ("likely" if served else "proven"), found.headline
    assert ("it is slow" in found.headline) is bool(served)


def test_a_frozen_file_system_is_proven_frozen_however_many_others_go_on() -> None:
    stack = ("percpu_rwsem_wait", "ext4_buffered_write_iter")
    case = families.in_kernel(*stack)
    task = case.thread(e.PID + 200, "worker", state="D", syscall=cases.PWRITE, stack=stack, switches=40)
    task.later = {"state": "S", "syscall": e.IDLE_WORKER, "stack": e.IDLE_STACK}
    assert (told(case).signature, told(case).confidence) == ("host-fs-frozen", "proven")


def test_requests_at_a_limit_that_no_disk_has_are_told_as_those_of_the_job() -> None:
    case = families.job_stalled()
    case.parked(e.THROTTLED_LEGACY, 4)
    found = told(case)
    assert found.signature == "throttle-timer-wait"
    assert "of job " in found.headline
    assert any(each.startswith("job ") for each in found.objects)


@pytest.mark.parametrize(("took", "slow"), [(0.6, True), (0.01, False)])
def test_a_disk_whose_requests_take_long_is_told_with_their_mean_and_is_not_stuck(took: float, *, slow: bool) -> None:
    case = e.Case()
    case.idle_threads()
    case.monitor()
    case.disks(e.disk("d0", before=100, after=105))  # reads and writes: ten requests
    for step, total in ((layout.QUERY_STATUS, 0.0), (layout.SECOND_EXPOSURE, 10 * took)):
        for exchange in case.exchanges[step]:
            if exchange.question == "query-blockstats":
                exchange.answer[0]["stats"]["rd_total_time_ns"] = int(total * e.SECOND)
    found = told(case)
    assert found.where == "none"
    assert ("is slow" in found.headline and "0.6 s on average" in found.headline) is slow


def unnamed(*others: records.SocketEnd) -> Diagnosis:
    """Return what is said of a request at an NBD server that no node tells of: it was added after QEMU's start."""
    case = e.Case()
    case.idle_threads()
    case.parked(e.NBD)
    case.dead_monitor()
    case.command_line = ("-name", "x")
    case.ends += [
        records.SocketEnd(fd=11, inode=77, family="unix", state="ESTAB", remote="/run/n", peer_pids=(900,)),
        *others,
    ]
    status = b"Name:\tqemu-nbd\nState:\tT (stopped)\n"
    case.peer_sections += [Section("peer/900/comm", b"qemu-nbd\n"), Section("peer/900/status", status)]
    return told(case)


def test_the_only_connection_that_qemu_made_is_told_where_no_node_names_a_server_and_proves_nothing() -> None:
    found = unnamed()
    assert (found.signature, found.confidence) == ("nbd-silent", "likely")
    assert "its process 900 (qemu-nbd) is stopped" in found.headline
    assert "qemu-nbd 900" in found.objects


def test_of_two_connections_none_is_told_to_be_the_server_s() -> None:
    found = unnamed(records.SocketEnd(fd=12, inode=78, family="unix", state="ESTAB", remote="/run/o", peer_pids=(901,)))
    assert found.signature == "nbd-silent"
    assert "qemu-nbd 900" not in found.objects
