"""The block devices below the target's open files, down to the hardware, as sysfs tells of them."""

from __future__ import annotations

import contextlib
import glob
import os
import stat
from collections.abc import Iterator, Mapping
from functools import partial

import msgspec

from autopsy.bundle import layout
from autopsy.bundle.sections import Section
from autopsy.capture.reading.procfs import ProcDirectory, read_file
from autopsy.capture.reading.programs import output
from autopsy.capture.reading.reader import (
    ReadFailures,
    SectionFile,
    SectionRead,
    Truncated,
    as_far_as_read,
    sections,
    take,
)
from autopsy.capture.step import Scene
from autopsy.dataclass import dataclass
from autopsy.linux.mounts import mounts_in_use, mounts_of

BLOCK = "/sys/class/block"
DEBUG = "/sys/kernel/debug/block"
MOST_DEVICES = 64
BUSY = ("state", "requeue_list", "hctx*/busy")
MOST_BUSY_FILES = 32
MOST_BUSY = 64 << 10
FIND_SECONDS = 2.0
PROGRAM_SECONDS = 2.0

# What tells whether requests are stuck in it, then how it is set up.
COUNTERS = ("inflight", "stat", "dm/suspended", "device/state", "device/iorequest_cnt", "device/iodone_cnt")
SETTINGS = (
    "bcache/dirty_data",
    "bcache/state",
    "device/ioerr_cnt",
    "device/timeout",
    "device/vendor",
    "device/model",
    "dm/name",
    "dm/uuid",
    "loop/backing_file",
    "loop/dio",
    "md/array_state",
    "md/sync_action",
    "md/degraded",
    "md/suspend_lo",
    "md/suspend_hi",
    "queue/io_timeout",
    "queue/nr_requests",
    "queue/rotational",
    "queue/scheduler",
    "queue/wbt_lat_usec",
    "queue/write_cache",
    "ro",
    "size",
)
AGAIN = ("/proc/diskstats", "/proc/pressure/cpu", "/proc/pressure/io", "/proc/pressure/memory", "/proc/vmstat")

# These take the device-mapper's own lock, and give no keys unless asked. Without --noflush, `status` of a thin pool
# commits its metadata: a write, and one that can hang.
DMSETUP = (("dmsetup", "info", "-c"), ("dmsetup", "table"), ("dmsetup", "status", "--noflush"))


class ListedDevice(msgspec.Struct, frozen=True, kw_only=True):
    """One block device, and what lies on it: descriptors of the target (`fd 12`), or another device.

    `debug` are files of debugfs where blk-mq tells of the requests themselves.
    """

    name: str
    number: str
    holds: tuple[str, ...]
    debug: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DevicesBelow:
    """The devices below the target's files, those that it uses directly first."""

    devices: tuple[ListedDevice, ...]

    def listing(self) -> bytes:
        """Return a line for each thing that lies on each of them: name, MAJ:MIN, what."""
        lines = (f"{device.name} {device.number} below {holds}\n" for device in self.devices for holds in device.holds)
        return "".join(lines).encode("utf-8", "surrogateescape")


def collect_block_devices(
    scene: Scene, process: ProcDirectory, descriptors: Mapping[str, Section], stored: SectionFile, trouble: ReadFailures
) -> None:
    """Append what is known of every such device: `block-devices` lists them, the rest is named by its path."""
    devices = _find(scene, process, descriptors, stored, trouble)
    for batch in sections(_reads(devices, (*COUNTERS, *SETTINGS)), scene.deadline, trouble):
        stored.append(section for section in batch if section.error != "ENOENT")
    for batch in sections(_debug(devices), scene.deadline, trouble):
        stored.append(section for section in batch if section.error != "ENOENT")
    if any(device.name.startswith("dm-") for device in devices.devices):
        programs = [
            SectionRead(
                " ".join(words), partial(output, words, seconds=PROGRAM_SECONDS), "device-mapper", PROGRAM_SECONDS + 1
            )
            for words in DMSETUP
        ]
        for batch in sections(programs, scene.deadline, trouble):
            stored.append(batch)


def collect_again(
    scene: Scene, process: ProcDirectory, descriptors: Mapping[str, Section], trouble: ReadFailures
) -> None:
    """Store the counters alone, in a host.txt of this step."""
    with SectionFile(scene, layout.HOST_FILES) as stored:
        for batch in sections([SectionRead(path, partial(read_file, path)) for path in AGAIN], scene.deadline, trouble):
            stored.append(batch)
        devices = _find(scene, process, descriptors, stored, trouble)
        for batch in sections(_reads(devices, COUNTERS), scene.deadline, trouble):
            stored.append(section for section in batch if section.error != "ENOENT")


def _find(
    scene: Scene, process: ProcDirectory, descriptors: Mapping[str, Section], stored: SectionFile, trouble: ReadFailures
) -> DevicesBelow:
    search = SectionRead("block-devices", partial(_walk, process, descriptors), seconds=FIND_SECONDS)
    asked = take([search], scene.deadline, trouble)
    answer = asked.pop("block-devices")
    devices = DevicesBelow(msgspec.json.decode(answer.data or b"[]", type=tuple[ListedDevice, ...]))
    stored.append([Section("block-devices", devices.listing(), error=answer.error), *asked.values()])
    return devices


def _reads(devices: DevicesBelow, files: tuple[str, ...]) -> Iterator[SectionRead]:
    for device in devices.devices:
        for file in files:
            path = f"{BLOCK}/{device.name}/{file}"
            yield SectionRead(path, partial(read_file, path), fate=device.name)


def _debug(devices: DevicesBelow) -> Iterator[SectionRead]:
    for device in devices.devices:
        for path in device.debug:
            yield SectionRead(path, partial(read_file, path, MOST_BUSY), fate=device.name)


def _walk(process: ProcDirectory, descriptors: Mapping[str, Section]) -> bytes | Truncated:
    """Be the search, in a reader; return Device[] as JSON."""
    devices: dict[str, ListedDevice] = {}
    unread = 0
    left = list(_direct(process, descriptors))
    while left and len(devices) < MOST_DEVICES:
        number, holds = left.pop(0)
        with contextlib.suppress(OSError):
            folder = os.path.realpath(f"/sys/dev/block/{number}", strict=True)
            name = os.path.basename(folder)
            if name in devices:
                devices[name] = msgspec.structs.replace(devices[name], holds=(*devices[name].holds, holds))
            else:
                debug = sorted(path for pattern in BUSY for path in glob.glob(f"{DEBUG}/{glob.escape(name)}/{pattern}"))
                unread += max(0, len(debug) - MOST_BUSY_FILES)
                devices[name] = ListedDevice(
                    name=name, number=number, holds=(holds,), debug=tuple(debug[:MOST_BUSY_FILES])
                )
                left += [(below, name) for below in _below(folder)]
    data = msgspec.json.encode(tuple(devices.values()))
    why = (f"{len(left)} more were not looked at" if left else "", f"{unread} files of debugfs" if unread else "")
    return Truncated(data, "; ".join(filter(None, why))) if any(why) else data


def _direct(process: ProcDirectory, descriptors: Mapping[str, Section]) -> Iterator[tuple[str, str]]:
    """Yield MAJ:MIN and what lies there for what the target has open: files on file systems, and devices themselves."""
    for mount in mounts_in_use(descriptors):
        holds = f"{mount.point} ({mount.kind}, fd {','.join(map(str, mount.fds))})"
        if not mount.device.startswith("0:"):
            yield mount.device, holds
        elif mount.source.startswith("/dev/"):  # btrfs and its like number themselves; their source is a device
            with contextlib.suppress(OSError):
                yield _number(f"{process.path}/root{mount.source}"), holds
    for name, section in descriptors.items():
        if name.startswith("fd/") and section.data.startswith(b"/dev/"):
            with contextlib.suppress(OSError):
                yield _number(f"{process.path}/{name}"), f"fd {name[3:]}"


def _number(path: str) -> str:
    status = os.stat(path)
    if not stat.S_ISBLK(status.st_mode):
        raise FileNotFoundError(path)
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"


def _below(folder: str) -> Iterator[str]:
    """Yield MAJ:MIN of what a device in sysfs is made of."""
    if os.path.exists(f"{folder}/partition"):
        yield _text(f"{os.path.dirname(folder)}/dev")
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(f"{folder}/slaves")):
            yield _text(f"{folder}/slaves/{name}/dev")
    with contextlib.suppress(OSError):
        backing = _text(f"{folder}/loop/backing_file").removesuffix(" (deleted)")
        own = read_file("/proc/self/mountinfo", 4 << 20)
        table = mounts_of(as_far_as_read(own)).values()
        around = [
            mount for mount in table if os.path.join(mount.point, "") == backing[: len(mount.point.rstrip("/")) + 1]
        ]
        if around:
            yield max(around, key=lambda mount: len(mount.point)).device


def _text(path: str) -> str:
    data = read_file(path, 4096)
    return as_far_as_read(data).decode("utf-8", "surrogateescape").strip()
