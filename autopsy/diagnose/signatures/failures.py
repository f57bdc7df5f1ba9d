"""Requests that do not wait: QEMU fails them at once, and tells the guest."""

from __future__ import annotations

from autopsy.diagnose.diagnosis import Where
from autopsy.diagnose.queries.account import no_connection
from autopsy.diagnose.queries.requests import disk_names, of_disks
from autopsy.diagnose.queries.wording import count, missing
from autopsy.diagnose.signature import CannotTell, Judgement, Match, RuledOut, Signature, claim
from autopsy.facts import subjects
from autopsy.facts.cite import Known, Unknown
from autopsy.facts.model.facts import DiskFact, Facts
from autopsy.facts.storage.nodes import LOCAL


def _fail(facts: Facts) -> Judgement:
    if isinstance(facts.disks, Unknown):
        return CannotTell(f"the disks' counters: {missing(facts.disks)}")
    grown = [(disk, number) for disk in facts.disks.value if (number := _failed(disk))]
    counted = [disk for disk in facts.disks.value if isinstance(disk.completed, Known)]
    if not grown:
        if facts.disks.value and not counted:
            return CannotTell("the disks' failures at both snapshots (query-blockstats)")
        return RuledOut("no disk counted a failed request meanwhile", tuple(disk.cite for disk in counted[:3]))
    disks = tuple(subjects.disk(disk) for disk, _ in grown)
    total = sum(number for _, number in grown)
    servers = tuple(dict.fromkeys(node.server for disk, _ in grown for node in disk.nodes if node.server))
    unconnected = tuple(reason for disk, _ in grown for reason in no_connection(facts, disk))
    flows = all(isinstance(disk.completed, Known) and disk.completed.value > 0 for disk, _ in grown)
    why = f": QEMU is not connected to {servers[0]}" if unconnected and servers else ""
    return Match(
        headline=f"{count(total, 'request')} {of_disks(disks)} failed at once while they were looked at{why}",
        objects=(*disks, *map(subjects.Server, servers[:3])),
        confidence="proven" if unconnected and not flows else "likely",
        claims=(
            *(
                claim(
                    f"Disk {disk_names([subjects.disk(disk)])} counted {count(number, 'failed request')} more at the "
                    "second snapshot.",
                    *(stats.cite for stats in (disk.stats, disk.stats_again) if isinstance(stats, Known)),
                )
                for disk, number in grown[:8]
            ),
            *unconnected[:4],
        ),
        where=_where(grown[0][0]),
        beside=flows,
        weight=total,
    )


def _failed(disk: DiskFact) -> int:
    """Return how many requests failed between the snapshots, 0 where that is not known."""
    if isinstance(disk.stats, Unknown) or isinstance(disk.stats_again, Unknown):
        return 0
    return max(0, disk.stats_again.value.failed - disk.stats.value.failed)


def _where(disk: DiskFact) -> Where:
    """Say who fails them: the server where there is one, the host for a local file, else QEMU's own block layer."""
    if any(node.server for node in disk.nodes):
        return "peer"
    return "host" if any(node.driver in LOCAL for node in disk.nodes) else "block"


SIGNATURES = (Signature("requests-fail", "block", "requests fail at once", _fail),)
