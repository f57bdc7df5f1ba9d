"""Which of a disk's completed requests speak for one that was seen to stand."""

from __future__ import annotations

from dataclasses import replace

from autopsy.diagnose.queries import progress
from autopsy.diagnose.queries.requests import moves
from autopsy.facts.cite import Cite, Known
from autopsy.facts.gather import gather_facts
from autopsy.facts.model.facts import BlockStats, CoroutineFact, DiskFact, Facts, Limits, Node, Park
from support.built import cases

HERE = Cite("evidence/qmp.query-status/qmp.jsonl")


def standing(facts: Facts) -> CoroutineFact:
    assert isinstance(facts.coroutines, Known)
    return next(each for each in facts.coroutines.value if isinstance(each.stuck, Known) and each.stuck.value)


def counted(disk: DiskFact, *, reads: int = 0, writes: int = 0) -> DiskFact:
    """Return the disk with what it completed between the two looks."""

    def at(reads: int, writes: int) -> Known[BlockStats]:
        return Known(
            BlockStats(reads=reads, writes=writes, flushes=0, unmaps=0, failed=0, idle_ns=None, cite=HERE), HERE
        )

    return replace(disk, stats=at(7, 7), stats_again=at(7 + reads, 7 + writes), completed=Known(reads + writes, HERE))


def disk_of(facts: Facts) -> DiskFact:
    assert isinstance(facts.disks, Known)
    return facts.disks.value[0]


def test_a_write_that_stands_is_excused_by_writes_and_not_by_reads() -> None:
    facts = gather_facts(cases.frozen_threads().bundle())
    write = standing(facts)
    assert not progress.speaks_for(facts, counted(disk_of(facts), reads=1000), write)
    assert progress.speaks_for(facts, counted(disk_of(facts), reads=1000, writes=1), write)


def test_a_request_that_left_its_place_needs_no_excuse() -> None:
    facts = gather_facts(cases.frozen_threads().bundle())
    assert moves(facts, replace(standing(facts), stuck=Known(value=False, cite=HERE)))


def test_a_backing_files_server_is_not_excused_by_what_the_disk_has_itself() -> None:
    facts = gather_facts(cases.nbd().bundle())
    request, disk = standing(facts), counted(disk_of(facts), reads=1000, writes=1000)
    server = next(node for node in disk.nodes if node.driver == "nbd")
    forked = replace(disk, nodes=(*disk.nodes, Node(name="own0", driver="file", cite=HERE)))
    assert request.park is Park.NBD_REPLY
    assert server.children == ()
    assert progress.speaks_for(facts, disk, request)
    assert not progress.speaks_for(facts, forked, request)


def test_a_limit_on_writes_alone_tells_that_what_waits_there_is_a_write() -> None:
    facts = gather_facts(cases.throttled().bundle())
    request = replace(standing(facts), frames=())
    disk = replace(counted(disk_of(facts), reads=1000), throttle_group=Known("", HERE))
    only_writes = replace(disk, limits=Known(Limits((("bps-write", 1), ("bps-write-max", 1))), HERE))
    both = replace(disk, limits=Known(Limits((("bps-total", 1),)), HERE))
    assert request.park is Park.THROTTLE
    assert not progress.speaks_for(facts, only_writes, request)
    assert progress.speaks_for(facts, both, request)
