"""What waits for QEMU's own limit is told for what it is: slow, a job's, or of disks that share the queue."""

from __future__ import annotations

from typing import Any

from autopsy.bundle import layout
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from support.built import cases
from support.built import evidence as e

THROTTLE = (*e.QUEUE, "throttle_group_co_io_limits_intercept")
# A mirror's write to its target: it calls the block layer by name, from functions of its own that have none.
OF_A_MIRROR = (*THROTTLE, "bdrv_co_pwritev_part", "blk_co_pwritev", "~bdrv_co_pdiscard", "~qemu_coroutine_switch")
OF_A_GUEST = (*THROTTLE, "~blk_co_pread", "~blk_co_pwritev_part", "~qemu_coroutine_switch")
# A guest's write that a mirror sends on to its target.
SENT_ON = (*OF_A_MIRROR[:-2], "~bdrv_co_pdiscard", "bdrv_co_pwritev_part", "~blk_co_pwritev_part")
MIRROR_ITSELF = (*e.QUEUE, "~bdrv_co_pdiscard_snapshot", "~block_job_get_aio_context", "~qemu_coroutine_switch")


def told(case: e.Case) -> Diagnosis:
    return diagnose(gather_facts(case.bundle()))


def mirroring(
    frames: tuple[str, ...], *, done: int, kind: str = "mirror", disks: tuple[dict[str, Any], ...] = ()
) -> e.Case:
    """Return a VM whose disk completed so much, with three requests under these frames at a limit."""
    case = e.Case()
    case.idle_threads()
    case.parked(frames, 3)
    case.parked(MIRROR_ITSELF)
    case.monitor()
    case.disks(*disks or (e.disk("d0", "vd0", before=100, after=100 + done),))
    job = {"id": "m0", "type": kind, "status": "running", "current-progress": 5, "total-progress": 9}
    for step in (layout.QUERY_STATUS, layout.SECOND_EXPOSURE):
        case.asked("query-jobs", [job], step=step)
    group = "throttle-group,id=slow0,x-bps-total=65536"
    case.command_line = ("-object", group, "-blockdev", "driver=throttle,node-name=t0,throttle-group=slow0,file=null0")
    return case


def test_a_mirror_that_a_limit_holds_back_is_slow_and_the_guest_s_disk_is_well() -> None:
    found = told(mirroring(OF_A_MIRROR, done=900))
    assert (found.where, found.signature) == ("none", "healthy")
    assert "3 requests of job m0 wait for QEMU's own I/O limit while the guest's disks work" in found.headline
    assert {each.signature for each in found.secondary} == {"throttle-timer-wait"}


def test_a_mirror_behind_a_limit_is_the_finding_where_the_guest_s_disk_does_nothing() -> None:
    found = told(mirroring(OF_A_MIRROR, done=0))
    assert (found.signature, found.subjects[0].name) == ("throttle-timer-wait", "job m0")


def test_a_guest_s_write_that_a_mirror_sends_on_is_no_copy_of_the_mirror_s() -> None:
    found = told(mirroring(SENT_ON, done=0))
    assert (found.signature, found.subjects[0].name) == ("throttle-timer-wait", "vd0 (d0)")
    going_on = told(mirroring(SENT_ON, done=900))  # its disk's writes all go that way, and hundreds have ended
    assert "of job m0 wait" not in going_on.headline


def writes_on(*disks: dict[str, Any]) -> Diagnosis:
    """Return what is said of a VM with these disks, where a mirror's server is silent that guest's writes wait for."""
    return told(mirroring((*e.YIELD, "nbd_receive_reply", *SENT_ON[len(THROTTLE) :]), done=0, disks=disks))


def test_a_guest_s_write_that_a_mirror_writes_to_its_target_is_the_disk_s_and_not_the_job_s() -> None:
    found = writes_on(e.disk("d0", "vd0"))
    assert (found.signature, found.subjects[0].name) == ("nbd-silent", "vd0 (d0)")
    assert "3 requests of disk vd0 (d0) wait for" in found.headline


def test_where_it_could_be_of_two_disks_neither_they_nor_the_job_are_named() -> None:
    found = writes_on(e.disk("d0", "vd0"), e.disk("d1", "vd1"))
    assert "3 requests of a disk that cannot be named wait for" in found.headline
    assert not {"vd0 (d0)", "vd1 (d1)", "job m0"}.intersection(found.objects)


def test_requests_are_no_job_s_where_no_job_copies() -> None:
    facts = gather_facts(mirroring(OF_A_MIRROR, done=0, kind="create").bundle())
    assert not any(each.of_job for each in facts.coroutines.value)  # type: ignore[union-attr]  # they are known here


def test_the_requests_of_a_commit_are_not_called_its_disk_s() -> None:
    case = cases.frozen_threads()
    case.coroutines.clear()
    case.parked((*e.YIELD, "thread_pool_submit_co", "blk_co_pwritev", "~bdrv_co_pdiscard", "~qemu_coroutine_switch"), 4)
    case.parked(MIRROR_ITSELF)
    job = {"id": "c0", "type": "commit", "status": "running", "current-progress": 0, "total-progress": 9}
    for step in (layout.QUERY_STATUS, layout.SECOND_EXPOSURE):
        case.asked("query-jobs", [job], step=step)
    found = told(case)
    assert found.signature == "host-fs-frozen"
    assert {each.signature for each in found.secondary} == {"job-stalled", "mirror-waits"}
    assert not any("of disk d0" in each.headline for each in found.secondary)


def shared(*groups: str, done: int = 0) -> Diagnosis:
    case = e.Case()
    case.idle_threads()
    case.parked(OF_A_GUEST, 7)
    case.monitor()
    disks = [e.disk(f"d{number}", f"vd{number}", bps=100, group=group) for number, group in enumerate(groups)]
    disks[0]["after"] += done
    case.disks(*disks)
    return told(case)


def test_disks_that_share_a_group_are_all_named_and_that_nobody_knows_whose_requests_they_are() -> None:
    found = shared("g", "g", done=1)  # a request of the first was let go meanwhile, and the others stand
    assert "7 requests of disks vd0 (d0), vd1 (d1) wait" in found.headline
    assert any("share one group and its queue" in each.text for each in found.chain)


def test_disks_with_groups_of_their_own_are_not_said_to_share_one() -> None:
    found = shared("g", "h")
    assert "of a disk that cannot be named" in found.headline
    assert not any("share one group" in each.text for each in found.chain)


def test_the_disk_whose_limit_explains_the_wait_is_named_and_not_the_one_that_goes_fast() -> None:
    case = e.Case()
    case.idle_threads()
    case.parked(OF_A_GUEST, 4)
    case.monitor()
    fast = e.disk("d0", "vd0", bps=10**9, group="fast0")
    case.disks(fast, e.disk("d1", "vd1", after=101, bps=100, group="slow0"))  # one of its requests was let go meanwhile
    found = told(case)
    assert (found.signature, found.objects) == ("throttle-timer-wait", ("vd1 (d1)", "throttle group slow0"))


def test_what_begins_among_the_functions_of_jobs_is_a_job_s_though_it_calls_no_request_of_the_block_layer() -> None:
    asks = (
        *e.YIELD,
        "nbd_receive_reply",
        "bdrv_co_is_allocated_above",
        "~luring_has_fua",
        "~block_job_get_aio_context",
    )
    facts = gather_facts(mirroring((*asks, "~qemu_coroutine_switch"), done=0, kind="stream").bundle())
    assert [each.of_job for each in facts.coroutines.value][:3] == [True] * 3  # type: ignore[union-attr]  # they are known


def at_its_own_limit(**limits: int) -> str:
    case = e.Case()
    case.idle_threads()
    case.parked(e.THROTTLED_LEGACY, 20)
    case.monitor()
    case.disks(e.disk("drive-scsi0", "scsi0", iops=1, group="drive-scsi0", **limits))
    return told(case).headline


def test_how_long_a_queue_takes_is_told_by_how_many_stand_in_it() -> None:
    assert "it takes about 20.0 s for these" in at_its_own_limit()


def test_where_a_large_request_counts_as_several_it_is_at_least_that() -> None:
    assert "it takes at least 20.0 s for these" in at_its_own_limit(iops_size=512)
