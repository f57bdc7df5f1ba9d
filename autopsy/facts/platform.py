"""What the VM's manager, or QEMU itself, is in the middle of: a migration, a backup, a snapshot, high availability."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from autopsy.bundle import layout, sections
from autopsy.facts.cite import Known
from autopsy.facts.evidence import Evidence
from autopsy.facts.model.around import Around
from autopsy.facts.model.facts import Facts
from autopsy.facts.untrusted import mapping, text

# MigrationStatus of qapi/migration.json: those that are neither before the first nor after the last.
MIGRATING = frozenset(
    """
    setup active pre-switchover device postcopy-device wait-unplug postcopy-active postcopy-paused
    postcopy-recover-setup postcopy-recover colo cancelling
    """.split()  # noqa: SIM905 - a list of words reads best as one
)
ENDED = frozenset({"null", "concluded"})  # of JobStatus
LOCK = re.compile(rb"^lock:[ \t]*(\S+)", re.MULTILINE)
SNAPSHOT = re.compile(rb"^\[", re.MULTILINE)
ASYNC_JOB = re.compile(rb"<job\b[^>]*\basync=['\"]([^'\"]{1,60})['\"]")
MANAGER_STATUS = "/etc/pve/ha/manager_status"
RESOURCES = "/etc/pve/ha/resources.cfg"


def around(facts: Facts, evidence: Evidence) -> Around:
    """Return what else has a hand on the VM: QEMU itself, its manager, its cluster."""
    return Around(ongoing(facts, evidence), ha_state(evidence, evidence.manifest.target.name))


def ongoing(facts: Facts, evidence: Evidence) -> tuple[str, ...]:
    """Return what a kill would cut off in the middle, each in a few words."""
    return (*_of_qemu(facts), *_of_manager(evidence))


def _of_qemu(facts: Facts) -> Iterator[str]:
    if isinstance(facts.migration, Known) and facts.migration.value in MIGRATING:
        yield f"a migration ({facts.migration.value})"
    for job in facts.jobs.value if isinstance(facts.jobs, Known) else ():
        if job.status not in ENDED:
            share = f", {job.current * 100 // job.total} %" if job.total else ""
            yield f"a {job.kind or 'block'} job ({job.id}: {job.status or 'unknown state'}{share})"


def _of_manager(evidence: Evidence) -> Iterator[str]:
    for name, data in _configuration(evidence).items():
        if name.endswith(".conf") and (match := LOCK.search(SNAPSHOT.split(data)[0])):
            yield f"Proxmox VE holds `lock: {match[1].decode('ascii', 'replace')[:40]}` on its configuration"
        if name.endswith(".xml") and (job := ASYNC_JOB.search(data)) and job[1] != b"none":
            yield f"libvirt is at a job of its own ({job[1].decode('ascii', 'replace')})"


def ha_state(evidence: Evidence, vmid: str) -> str:
    """Return the state that Proxmox VE's HA manager keeps a VM in, empty where it does not manage it."""
    stored = _configuration(evidence)
    service = f"vm:{vmid}"
    try:
        status: Any = msgspec.json.decode(stored.get(MANAGER_STATUS, b"{}"))
    except msgspec.DecodeError:
        status = {}
    known = text(mapping(mapping(mapping(status).get("service_status")).get(service)).get("state"))
    if known:
        return known
    for block in re.split(rb"\n(?=\S)", stored.get(RESOURCES, b"")):
        head, _, rest = block.partition(b"\n")
        if head.split() == [b"vm:", vmid.encode()]:
            state = re.search(rb"^\s+state\s+(\S+)", rest, re.MULTILINE)
            return state[1].decode("ascii", "replace") if state else "started"  # its default
    return ""


def _configuration(evidence: Evidence) -> Mapping[str, bytes]:
    raw = evidence.read(layout.evidence(layout.HOST, layout.VM_CONFIG))
    return {section.name: section.data for section in sections.parse(raw) if not section.error}
