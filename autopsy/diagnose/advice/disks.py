"""Commands about a VM's disks and jobs: limits that are lifted, iothreads that are added, jobs that are ended."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from autopsy.diagnose.advice import shell
from autopsy.diagnose.advice.managers import Hand
from autopsy.diagnose.advice.shell import line, question
from autopsy.facts import subjects
from autopsy.facts.cite import Known
from autopsy.facts.model.facts import ConfiguredDisk, DiskFact, Facts, ThrottleGroupFact
from autopsy.facts.subjects import Subject

MOST = 4
LIMIT = re.compile(r"(?:m?bps|iops)(?:_\w+)?=")  # of a disk's options in Proxmox VE
NO_LIMIT = {name: 0 for way in ("bps", "iops") for name in (way, f"{way}_rd", f"{way}_wr")}
RATES = frozenset(f"{what}-{way}" for what in ("bps", "iops") for way in ("total", "read", "write"))
NO_LIMIT_BY_VIRSH = tuple(
    word for what in ("bytes", "iops") for way in ("total", "read", "write") for word in (f"--{way}-{what}-sec", "0")
)
OBJECTS = "/objects/"


def verbs(facts: Facts, objects: Iterable[Subject], hand: Hand) -> Mapping[str, Callable[[], str]]:
    """Return what makes the commands about the disks and jobs that a diagnosis names."""
    objects = tuple(objects)
    named = [disk for disk in _disks(facts) if subjects.disk(disk) in objects][:MOST]
    groups = {group.name for group in objects if isinstance(group, subjects.ThrottleGroup)}
    jobs = [job.id for job in objects if isinstance(job, subjects.Job)][:1]
    if not jobs and isinstance(facts.jobs, Known) and len(facts.jobs.value) == 1:
        jobs = [facts.jobs.value[0].id]
    return {
        "lift-limit": lambda: shell.both(*(_lift(hand, disk, _group(facts, disk, groups)) for disk in named)),
        "own-iothread": lambda: shell.both(*(_own_iothread(hand, disk) for disk in named)),
        **{verb: partial(_of_jobs, hand, verb, jobs, named) for verb in ("cancel-job", "finish-job", "speed-job")},
    }


def images(facts: Facts, objects: Iterable[Subject]) -> tuple[str, ...]:
    """Return the paths of the image files of the disks that a diagnosis names."""
    named = [disk for disk in _disks(facts) if subjects.disk(disk) in tuple(objects)]
    paths = (node.filename for disk in named for node in disk.nodes if node.filename.startswith("/"))
    return tuple(dict.fromkeys(paths))


def _disks(facts: Facts) -> tuple[DiskFact, ...]:
    return facts.disks.value if isinstance(facts.disks, Known) else ()


def _group(facts: Facts, disk: DiskFact, names: set[str]) -> ThrottleGroupFact | None:
    """Return the throttle-group object that a filter node above the disk's image is in."""
    groups = facts.throttle_groups.value if isinstance(facts.throttle_groups, Known) else ()
    filters = {node.throttle_group for node in disk.nodes if node.throttle_group} & (
        names or {group.name for group in groups}
    )
    return next((group for group in groups if group.name in filters), None)


def _lift(hand: Hand, disk: DiskFact, group: ThrottleGroupFact | None) -> str:
    configured = _configured(hand, disk)
    if group is not None:
        # Setting an object's limits wakes nothing that waits already; the drain of a pause does.
        limits = group.limits.value.values if isinstance(group.limits, Known) else ()
        values = {name: 0 for name, _ in limits if name in RATES}
        unset = question("qom-set", path=OBJECTS + group.name, property="limits", value=values or {"bps-total": 0})
        # A storage daemon has no VM to pause; its clients' next requests go by the new limits.
        wake = () if hand.vm.is_storage_daemon else (question("stop"), question("cont"))
        return hand.qmp(unset, *wake)
    if configured is not None and hand.domain:
        return hand.virsh("blkdeviotune", configured.name, *NO_LIMIT_BY_VIRSH)
    if configured is not None and hand.vmid and shell.sayable(configured.options):
        kept = [option for option in configured.options.split(",") if not LIMIT.match(option)]
        return hand.qm("set", f"--{configured.name}", ",".join(kept))
    if hand.vm.is_storage_daemon:
        return ""  # it knows no block_set_io_throttle
    whose = {"device": disk.backend} if disk.backend else {"id": disk.device}
    if not shell.sayable(next(iter(whose.values()))):
        return ""
    return hand.qmp(question("block_set_io_throttle", **whose, **NO_LIMIT))


def _own_iothread(hand: Hand, disk: DiskFact) -> str:
    """Return what gives a disk a thread of its own, and workers in place of io_submit, from its next start on."""
    configured = _configured(hand, disk)
    if configured is None:
        return ""
    if hand.vmid and shell.sayable(configured.options):
        kept = [option for option in configured.options.split(",") if not option.startswith(("iothread=", "aio="))]
        options = ",".join((*kept, "iothread=1", "aio=threads"))
        return hand.qm("set", "--scsihw", "virtio-scsi-single", f"--{configured.name}", options)
    if hand.domain:
        edit = line("virt-xml", hand.domain, "--edit", f"target.dev={configured.name}", "--disk")
        return shell.both(hand.virsh("iothreadadd", "1", "--config"), f"{edit} driver.iothread=1,driver.io=threads")
    return ""


def _of_jobs(hand: Hand, verb: str, jobs: Iterable[str], disks: list[DiskFact]) -> str:
    return shell.both(*(_job(hand, verb, job, disks) for job in jobs))


def _job(hand: Hand, verb: str, job: str, disks: list[DiskFact]) -> str:
    configured = next((candidate for disk in disks if (candidate := _configured(hand, disk))), None)
    if hand.domain and configured is not None:
        how = {"cancel-job": ("--abort",), "finish-job": ("--pivot",), "speed-job": ("--bandwidth", "0")}[verb]
        return hand.virsh("blockjob", configured.name, *how)
    match verb:
        case "cancel-job":
            return hand.qmp(question("block-job-cancel", device=job, force=True))
        case "finish-job":
            return hand.qmp(question("job-complete", id=job))
        case _:
            return hand.qmp(question("block-job-set-speed", device=job, speed=0))


def _configured(hand: Hand, disk: DiskFact) -> ConfiguredDisk | None:
    return next(
        (
            configured
            for configured in hand.vm.configured_disks
            if configured.device == disk.name and shell.sayable(configured.name)
        ),
        None,
    )
