"""The host's own limits: a control group that lets the VM read or write next to nothing."""

from __future__ import annotations

from collections.abc import Iterator

from autopsy.diagnose.diagnosis import Claim
from autopsy.diagnose.queries.kernel_sleepers import Sleeper, device_of, file_of, image_of, mount_of, sleepers
from autopsy.diagnose.queries.limits.io_limits import (
    BLOCK_LAYER,
    binding,
    devices_below,
    is_by_one_driver,
    is_on_one_disk,
)
from autopsy.diagnose.queries.requests import (
    counted,
    of_disks,
    stand,
    still,
    their_disks,
)
from autopsy.diagnose.queries.wording import count, missing
from autopsy.diagnose.signature import CannotTell, Judgement, Match, RuledOut, Signature, claim
from autopsy.facts import subjects
from autopsy.facts.cite import Known, Unknown
from autopsy.facts.model.facts import CoroutineFact, Facts, IoLimit, Park


def _io_limited(facts: Facts) -> Judgement:
    limits = facts.host.io_limits
    if isinstance(limits, Unknown):
        return CannotTell(f"the limits of its control groups: {missing(limits)}")
    if not limits.value:
        return RuledOut("no control group limits what it reads and writes", (limits.cite,))
    slow = binding(facts)
    if not slow:
        words = f"its control group's limits ({_words(limits.value[0])}) let requests go within the time of watching"
        return RuledOut(words, tuple(limit.cite for limit in limits.value[:3]))
    requests = still(facts, Park.THREADS, Park.LINUX_AIO, Park.IO_URING)
    waiting = sleepers(facts)
    if any(sleeper.family.id != BLOCK_LAYER for sleeper in waiting) or not (requests or waiting):
        return RuledOut("no request waits in the host's block layer", tuple(limit.cite for limit in slow[:3]))
    devices = devices_below(facts, requests)
    on_it = [limit for limit in slow if any(is_on_one_disk(limit.device, device) for device in devices)]
    near = [limit for limit in slow if any(is_by_one_driver(limit.device, device) for device in devices)]
    if devices and not near:
        return RuledOut(f"it limits other devices: {_words(slow[0])}", tuple(limit.cite for limit in slow[:3]))
    holding = on_it or near or slow
    disks = their_disks(facts, requests)
    number = len(requests) or len(waiting)
    who = f"{counted(facts, requests)} {of_disks(disks)}" if requests else f"{count(number, 'thread')} of QEMU"
    return Match(
        headline=(f"{who} {'waits' if number == 1 else 'wait'} for the host's own limit: {_words(holding[0])}"),
        objects=(*disks, subjects.ControlGroup(holding[0].group), subjects.HostDevice(holding[0].device)),
        confidence="likely" if on_it else "possible",
        claims=(
            *(
                claim(f"The host lets the VM do no more than this: {_words(limit)}.", limit.cite)
                for limit in holding[:4]
            ),
            *_waiting(requests, counted(facts, requests), waiting, disks),
        ),
        stands=stand((Park.THREADS, Park.LINUX_AIO, Park.IO_URING), requests, _asleep(facts, waiting)),
        weight=number,
    )


def _asleep(facts: Facts, waiting: tuple[Sleeper, ...]) -> Iterator[subjects.Subject]:
    """Yield where the graph of waits has these threads: in the block layer, for the file systems of what they do."""
    yield subjects.Kernel(BLOCK_LAYER)
    disks = facts.disks.value if isinstance(facts.disks, Known) else ()
    files = [file.target for sleeper in waiting if (file := file_of(facts, sleeper.look)) is not None]
    for path in filter(None, dict.fromkeys((*files, *(image_of(facts, disk) for disk in disks)))):
        if (mount := mount_of(facts, path)) is not None:
            yield from (subjects.Kernel(BLOCK_LAYER, mount.path), subjects.file_system(mount))
        if (device := device_of(facts, path)) is not None:
            yield from (subjects.Kernel(BLOCK_LAYER, device.name), device)


def _words(limit: IoLimit) -> str:
    verb = "read from" if limit.kind == "read" else "written to"
    return f"{limit.value} {limit.unit} a second {verb} device {limit.device}, by control group {limit.group}"


def _waiting(
    requests: tuple[CoroutineFact, ...],
    how_many: str,
    threads: tuple[Sleeper, ...],
    disks: tuple[subjects.Volume, ...],
) -> Iterator[Claim]:
    if requests:
        words = f"{how_many} {of_disks(disks)} went to the host's kernel, and did not come back"
        yield claim(f"{words}.", *(request.cite for request in requests[:4]))
    if threads:
        words = f"{count(len(threads), 'thread')} of QEMU sleep in its block layer"
        yield claim(f"{words}.", *(sleeper.look.cite for sleeper in threads[:4]))


SIGNATURES = (Signature("cgroup-io-limited", "host", "a control group limits the VM's disk I/O", _io_limited),)
