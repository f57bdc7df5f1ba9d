"""What QEMU's human monitor prints is read as the answers that QMP gives to the same questions."""

from __future__ import annotations

from pathlib import Path

import pytest

from autopsy.facts.cite import Known
from autopsy.facts.model.facts import BlockStats, DiskFact, Facts, Limits
from autopsy.incoming.texts.hmp_text import HmpText
from support.built import pastes
from support.built.imported import diagnosis_of, facts_of
from support.built.monitor_text import HMP
from support.built.pastes import DISPATCH, POLL


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    return facts_of(HMP, tmp_path_factory.mktemp("hmp"))


def disk(facts: Facts, name: str) -> DiskFact:
    assert isinstance(facts.disks, Known)
    return next(each for each in facts.disks.value if each.name == name)


def counted(disk: DiskFact) -> BlockStats:
    assert isinstance(disk.stats, Known)
    return disk.stats.value


def test_info_block_tells_each_disk_with_its_node_limits_and_status(facts: Facts) -> None:
    assert isinstance(facts.disks, Known)
    assert [each.name for each in facts.disks.value] == ["vda", "d1", "sd1", "ide1-cd0"]
    first = disk(facts, "vda")
    assert [(node.name, node.driver, node.filename) for node in first.nodes] == [("#block172", "qcow2", "a.qcow2")]
    assert isinstance(first.limits, Known)
    assert first.limits.value == Limits((("bps-total", 1000000), ("iops-total", 50)))
    assert isinstance(first.throttle_group, Known)
    assert first.throttle_group.value == "g0"
    assert isinstance(first.io_status, Known)
    assert first.io_status.value == "nospace"


def test_info_blockstats_tells_the_counters_of_a_backend_without_a_name_too(facts: Facts) -> None:
    assert (counted(disk(facts, "vda")).writes, counted(disk(facts, "vda")).idle_ns) == (8, 5)
    assert counted(disk(facts, "sd1")).reads == 3


def test_nodes_that_no_guest_has_are_no_disks(facts: Facts) -> None:
    assert isinstance(facts.disks, Known)
    assert len(facts.disks.value) == 4


def test_info_block_jobs_tells_the_jobs(facts: Facts) -> None:
    assert isinstance(facts.jobs, Known)
    assert [(each.id, each.kind, each.current, each.total) for each in facts.jobs.value] == [
        ("d1", "mirror", 67100000, 67108864)
    ]


def test_threads_have_the_roles_that_the_monitor_told(tmp_path: Path) -> None:
    dump = pastes.dump(("", ("syscall", "x")), ("", ("y", "z")), ("", (*POLL, "blk_drain", *DISPATCH)))
    dump = dump.replace("5001", "7137").replace("5002", "7134")
    found = facts_of(f"{dump}\n{HMP}", tmp_path)
    assert isinstance(found.threads, Known)
    assert {each.tid: each.role.name for each in found.threads.value if each.tid > 7000} == {
        7137: "VCPU",
        7134: "IOTHREAD",
    }


@pytest.mark.parametrize("words", ["paused (io-error)", "paused (prelaunch)", "running"])
def test_info_status_tells_the_run_state(words: str, tmp_path: Path) -> None:
    where = "vm-state" if "paused" in words else "unknown"
    assert diagnosis_of(f"(qemu) info status\nVM status: {words}\n", tmp_path).where == where


@pytest.mark.parametrize(
    "text",
    [
        "    Cache mode:       writeback\n",
        "a: b (c)\n    unknown: x\n",
        "  thread_id=1\n",
        ": rd_bytes=99999999999999999999999999999999 group=x\n" * 3,
        "d (n): f (raw)\n    I/O throttling:   bps=x =1 group=\n",
        "Type , device : Completed x of y bytes, speed limit z bytes/s\n",
        "x: [not inserted]\n    Attached to:\n    Removable device:\n",
    ],
)
def test_odd_lines_break_nothing(text: str) -> None:
    reading = HmpText()
    for line in text.splitlines():
        reading.feed(line)
    assert all(each.outcome == "answered" for each in reading.exchanges())
