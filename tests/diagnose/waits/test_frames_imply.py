"""What imported stacks imply of who waits for whom are edges of the graph of waits, where only one can be meant."""

from __future__ import annotations

from pathlib import Path

from autopsy.bundle.reader import open_bundle
from autopsy.diagnose.verdict import diagnose
from autopsy.diagnose.waits import frames
from autopsy.diagnose.waits.graph import build
from autopsy.diagnose.waits.wait import Certainty, How
from autopsy.facts import subjects
from autopsy.facts.gather import gather_facts
from support.built import pastes
from support.built.imported import facts_of
from support.built.pastes import DISPATCH, LOCK, LOCK_BQL, MAIN, MMIO, POLL, STARTED

FIXTURES = Path(__file__).resolve().parents[3] / "fixtures"
WANTS_BQL = ("CPU 0/KVM", (*LOCK_BQL, "prepare_mmio_access", *MMIO))
STOPS = ("CPU 4/KVM", (*POLL, "aio_wait_bh_oneshot", "virtio_blk_stop_ioeventfd", "virtio_write_config", *MMIO))
IOTHREAD = ("IO io0", (*LOCK, "bql_lock_impl", "prepare_mmio_access", "vring_avail_idx", "iothread_run", *STARTED))
CONTEXT = ("IO io0", (*LOCK, "qemu_rec_mutex_lock_impl", "aio_context_acquire", "virtio_blk_handle_vq", *STARTED))
DRAINS = ("kvm", (*POLL, "bdrv_drain_all_begin", *DISPATCH))


def edges(text: str, folder: Path) -> set[tuple[subjects.Subject, How, subjects.Subject]]:
    return {(each.waiter, each.how, each.on) for each in frames.frame_waits(facts_of(text, folder))}


def test_whoever_must_have_the_bql_holds_up_those_who_wait_for_it(tmp_path: Path) -> None:
    assert edges(pastes.dump(WANTS_BQL, DRAINS), tmp_path) == {
        (subjects.Thread(5001), How.WAITS_FOR_LOCK, frames.BQL),
        (frames.BQL, How.HELD_BY, subjects.Thread(5000)),
    }


def test_where_two_might_have_it_nobody_is_said_to(tmp_path: Path) -> None:
    found = edges(pastes.dump(WANTS_BQL, STOPS, DRAINS), tmp_path)
    assert {how for _, how, _ in found} == {How.WAITS_FOR_LOCK}


def test_who_waits_for_a_condition_may_have_let_go_of_it(tmp_path: Path) -> None:
    pauses = ("kvm", ("___pthread_cond_wait", "qemu_cond_wait_impl", "pause_all_vcpus", *DISPATCH))
    assert {how for _, how, _ in edges(pastes.dump(WANTS_BQL, pauses), tmp_path)} == {How.WAITS_FOR_LOCK}


def test_a_ring_of_frames_is_a_ring_of_the_graph_and_is_drawn(tmp_path: Path) -> None:
    facts = facts_of(pastes.dump(STOPS, IOTHREAD), tmp_path)
    (ring,) = build(facts).ends.rings
    assert ring == {subjects.Thread(5000), subjects.Thread(5001), frames.BQL}
    drawing = diagnose(facts).waits
    assert {node.label for node in drawing.nodes} >= {"the BQL"}
    assert sum(edge.in_cycle for edge in drawing.edges) == 3


def test_who_waits_for_a_context_waits_for_the_only_one_that_polls(tmp_path: Path) -> None:
    found = edges(pastes.dump(CONTEXT, DRAINS), tmp_path / "one")
    assert (frames.CONTEXT, How.HELD_BY, subjects.Thread(5000)) in found
    found = edges(pastes.dump(CONTEXT, CONTEXT, DRAINS), tmp_path / "two")  # which of two contexts, nobody knows
    assert {how for _, how, _ in found} == {How.WAITS_FOR_LOCK}


def test_a_joined_thread_that_waits_for_the_bql_is_told(tmp_path: Path) -> None:
    joins = ("kvm", ("__pthread_clockjoin_ex", "qemu_thread_join", "process_incoming_migration_co", *DISPATCH))
    wants = ("COLO incoming", (*LOCK_BQL, "colo_process_incoming_thread", *STARTED))
    assert (subjects.Thread(5000), How.JOINS, subjects.Thread(5001)) in edges(pastes.dump(wants, joins), tmp_path)


def test_a_printed_owner_says_more_than_frames_and_alone_is_believed(tmp_path: Path) -> None:
    owner = "(gdb) p qemu_global_mutex\n$1 = {lock = {__data = {__owner = 5000, __kind = 0}}}\n"
    assert (
        edges(pastes.dump(WANTS_BQL, ("kvm", (*LOCK_BQL, "os_host_main_loop_wait", *MAIN))) + owner, tmp_path) == set()
    )


def test_a_back_end_that_is_asked_is_an_end(tmp_path: Path) -> None:
    asks = ("CPU 0/KVM", ("recvmsg", "qio_channel_readv_full", "vhost_user_read", "vhost_user_get_vring_base", *MMIO))
    facts = facts_of(pastes.dump(asks), tmp_path)
    assert frames.BACK_END in build(facts).ends.sinks


def test_a_reader_of_rcu_that_waits_for_all_readers_waits_for_itself(tmp_path: Path) -> None:
    waits = ("syscall", "qemu_futex_wait", "qemu_event_wait", "drain_call_rcu", "qmp_device_add")
    (ring,) = build(facts_of(pastes.dump(("CPU 0/KVM", (*waits, *MMIO))), tmp_path / "reader")).ends.rings
    assert ring == {subjects.Thread(5000), frames.READERS}
    facts = facts_of(pastes.dump(("kvm", (*waits, *DISPATCH))), tmp_path / "no reader")
    assert not build(facts).ends.rings
    assert frames.READERS in build(facts).ends.sinks


def test_a_thread_that_another_part_of_a_migration_is_to_wake_waits_for_the_migration(tmp_path: Path) -> None:
    stack = ("do_futex_wait", "qemu_sem_wait", "multifd_send_sync_main", "ram_save_setup", "migration_thread", *STARTED)
    facts = facts_of(pastes.dump(("live_migration", stack)), tmp_path)
    assert subjects.Migration() in build(facts).ends.sinks


def test_a_capture_has_no_edge_by_frames_alone() -> None:
    for name in ("throttle-timer-7.2", "lock-cycle-debug"):
        bundle = FIXTURES / name / "bundle"
        if bundle.is_dir():
            assert not any(
                each.certainty is Certainty.CONSISTENT for each in build(gather_facts(open_bundle(bundle))).waits
            )
