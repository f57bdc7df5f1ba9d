"""Requests that do not wait: QEMU fails them at once, and tells the guest."""

from __future__ import annotations

from autopsy.diagnose.diagnosis import Where
from autopsy.diagnose.queries.account import no_connection
from autopsy.diagnose.queries.kernel_sleepers import disks_on, mount_of
from autopsy.diagnose.queries.requests import called, disk_names, of_disks
from autopsy.diagnose.queries.wording import count, missing, sentence
from autopsy.diagnose.signature import CannotTell, Judgement, Match, RuledOut, Signature, claim
from autopsy.facts import subjects
from autopsy.facts.cite import Known, Unknown
from autopsy.facts.model.facts import DiskFact, Facts
from autopsy.facts.storage.nodes import LOCAL

LEFT = frozenset({"ENOTCONN", "ESHUTDOWN", "ECONNABORTED"})  # the kernel's words for a server that has left a mount
GONE = "the program that served it has ended"


def _fail(facts: Facts) -> Judgement:
    if isinstance(facts.disks, Unknown):
        return CannotTell(f"the disks' counters: {missing(facts.disks)}")
    grown = [(disk, number) for disk in facts.disks.value if (number := _failed(disk))]
    counted = [disk for disk in facts.disks.value if isinstance(disk.completed, Known)]
    if not grown:
        if broken := _broken(facts):
            return broken
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


def _broken(facts: Facts) -> Match | None:
    """Return that a disk's storage fails whatever is asked of it, though nothing was asked meanwhile; None for none."""
    for failing in facts.failing_files.value if isinstance(facts.failing_files, Known) else ():
        disks = disks_on(facts, frozenset({failing.path}))
        if not disks:
            continue
        whose = of_disks(tuple(map(subjects.disk, disks)))
        mount = mount_of(facts, failing.path)
        lies = f", which lies on {mount.path} ({mount.fstype})" if mount is not None else ""
        why = GONE if failing.error in LEFT else "its storage is broken"
        failed = sum(disk.stats.value.failed for disk in disks if isinstance(disk.stats, Known))
        failures = f"; {count(failed, 'request')} failed since QEMU began" if failed else ""
        return Match(
            headline=f"Whatever is asked {whose} fails at once: {why} ({failing.error}){failures}",
            objects=(*map(subjects.disk, disks), *((subjects.file_system(mount),) if mount is not None else ())),
            confidence="proven" if failed else "likely",
            claims=(
                claim(f"{failing.path}{lies}, answers with {failing.error} at once.", failing.cite),
                *(
                    claim(
                        f"{sentence(called(disk))} has failed {count(disk.stats.value.failed, 'request')}.", disk.cite
                    )
                    for disk in disks
                    if isinstance(disk.stats, Known) and disk.stats.value.failed
                ),
            ),
            where="peer" if failing.error in LEFT else "host",
            weight=failed or 1,
        )
    for disk in facts.disks.value if isinstance(facts.disks, Known) else ():
        still = isinstance(disk.completed, Known) and not disk.completed.value
        unconnected = tuple(no_connection(facts, disk))
        if still and unconnected and isinstance(disk.stats, Known) and (failed := disk.stats.value.failed):
            servers = tuple(node.server for node in disk.nodes if node.server)
            return Match(
                headline=f"{count(failed, 'request')} {of_disks((subjects.disk(disk),))} failed since QEMU began, and "
                f"whatever is asked next will: QEMU is not connected to {servers[0]}",
                objects=(subjects.disk(disk), *map(subjects.Server, servers[:3])),
                confidence="likely",
                claims=(
                    claim(f"{sentence(called(disk))} has failed {count(failed, 'request')}.", disk.stats.cite),
                    *unconnected[:4],
                ),
                where="peer",
                weight=failed,
            )
    return None


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
