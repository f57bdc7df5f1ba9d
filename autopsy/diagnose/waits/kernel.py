"""Edges of threads that sleep in the host's kernel: to the file system of what they work on, and on to its daemon."""

from __future__ import annotations

from collections.abc import Iterator

from autopsy.diagnose.queries.below import below
from autopsy.diagnose.queries.kernel_sleepers import (
    Sleeper,
    device_of,
    disks_behind,
    file_of,
    image_of,
    mount_of,
    ram_file,
    sleepers,
)
from autopsy.diagnose.waits.wait import Certainty, How, Wait
from autopsy.facts import subjects
from autopsy.facts.cite import Known, Unknown
from autopsy.facts.model.facts import Facts, MountFact, Role

FROZEN = "host-fs-frozen"


def kernel_waits(facts: Facts) -> Iterator[Wait]:
    """Yield where each of them sleeps; what no file is known of sleeps in the kernel itself."""
    mounts: dict[str, MountFact] = {}
    for sleeper in sleepers(facts):
        sure = Certainty.SEEN if sleeper.through else Certainty.ONCE
        paths = _paths(facts, sleeper)
        on = [mount for path in paths if (mount := mount_of(facts, path)) is not None]
        devices = [device for path in paths if (device := device_of(facts, path)) is not None]
        if sleeper.family.id != FROZEN:  # a freeze is that file system's own, whatever it lies on
            mounts.update((mount.path, mount) for mount in on)
        cites = (sleeper.look.cite, sleeper.look.stack_cite)
        places: list[tuple[str, subjects.Subject]] = [(mount.path, subjects.file_system(mount)) for mount in on] + [
            (device.name, device) for device in devices
        ]
        for name, place in places:
            asleep = subjects.Kernel(sleeper.family.id, name)
            yield Wait(subjects.thread(sleeper.thread), asleep, How.SLEEPS_IN, sure, cites)
            yield Wait(asleep, place, How.ON, sure, cites)
        if not places:
            yield Wait(subjects.thread(sleeper.thread), subjects.Kernel(sleeper.family.id), How.SLEEPS_IN, sure, cites)
    for mount in tuple(mounts.values()):
        above, way = mount, below(facts, mount)
        for layer in way.layers if way.holds else ():
            yield Wait(
                *(subjects.file_system(above), subjects.HostDevice(layer.loop), How.STACKED_ON, Certainty.ONCE),
                cites=(layer.cite,),
            )
            below_it = subjects.file_system(layer.mount)
            yield Wait(subjects.HostDevice(layer.loop), below_it, How.STACKED_ON, Certainty.ONCE, (layer.cite,))
            above = layer.mount
            mounts[above.path] = above
    for served in facts.fuse.value if isinstance(facts.fuse, Known) else ():
        if served.path in mounts and (served.sure or len(served.daemons) == 1):
            for daemon in served.daemons:
                fuse = subjects.file_system(mounts[served.path])
                yield Wait(fuse, subjects.peer(daemon), How.SERVED_BY, Certainty.ONCE, (served.cite, daemon.cite))


def _paths(facts: Facts, sleeper: Sleeper) -> tuple[str, ...]:
    file = file_of(facts, sleeper.look)
    if file is not None:
        return (file.target,)
    if sleeper.thread.role is Role.MAIN and not isinstance(facts.main_loop, Unknown) and facts.main_loop.value.path:
        return (facts.main_loop.value.path,)
    if ram := ram_file(facts, sleeper.look):
        return (ram,)
    return tuple(path for disk in disks_behind(facts, [sleeper]) if (path := image_of(facts, disk)))
