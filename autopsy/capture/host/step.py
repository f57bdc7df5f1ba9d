"""The host around the VM: pressure, limits, block devices, file systems, logs, and the VM's own configuration."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from autopsy.bundle import layout
from autopsy.bundle.sections import Section, parse
from autopsy.capture.host import block_devices, cgroups, kernel_log, storage_clients, vm_files
from autopsy.capture.reading.procfs import ProcDirectory, ProcessEnded, held, read_file
from autopsy.capture.reading.reader import ReadFailures, SectionFile, SectionRead, sections, store, take
from autopsy.capture.step import Outcome, Scene
from autopsy.linux.mounts import Mount, mounts_in_use
from autopsy.target import permissions

FILES = (
    "/proc/loadavg",
    "/proc/uptime",
    "/proc/version",
    "/proc/cmdline",
    "/etc/os-release",
    "/proc/pressure/cpu",
    "/proc/pressure/io",
    "/proc/pressure/memory",
    "/proc/meminfo",
    "/proc/vmstat",
    "/proc/swaps",
    "/proc/diskstats",
    "/proc/mdstat",
    "/proc/locks",
    "/proc/sys/fs/aio-max-nr",
    "/proc/sys/fs/aio-nr",
    "/proc/sys/fs/file-nr",
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/io_uring_disabled",
    "/proc/sys/kernel/tainted",
    "/proc/sys/kernel/yama/ptrace_scope",
    "/proc/sys/vm/swappiness",
    "/sys/kernel/security/lockdown",
    "/sys/kernel/mm/ksm/run",
    "/sys/kernel/mm/transparent_hugepage/defrag",
    "/sys/kernel/mm/transparent_hugepage/enabled",
)
SETTINGS = ("/proc/sys/kernel/hung_task*", "/proc/sys/vm/dirty_*")
OWN_MOUNTS = "/proc/self/mountinfo"
MOST_FILE = 4 << 20


def collect_host(scene: Scene) -> Outcome:
    """Take what the host says of itself, the surest first; every file that could hang hangs alone.

    When the VM has ended, there is the host around it still.
    """
    trouble = ReadFailures()
    record = scene.target.record
    root = record.domain.root if record.domain else ""
    name = vm_files.known_name(record)
    try:
        with held(scene.target) as process, trouble.one_reader():
            groups = _around(scene, process, trouble)
            _logs(scene, vm_files.log(process, name, record.manager, root), cgroups.scopes(groups), trouble)
    except ProcessEnded as error:
        trouble.notes.append(str(error))
        if not (scene.folder / layout.HOST_FILES).exists():
            with SectionFile(scene, layout.HOST_FILES) as stored:
                _files(scene, None, stored, trouble)
        _logs(scene, vm_files.managers_log(name, record.manager, root), (), trouble)
    trouble.notes += filter(None, [permissions.lockdown()])
    return trouble.outcome()


def _around(scene: Scene, process: ProcDirectory, trouble: ReadFailures) -> tuple[bytes, ...]:
    """Store host.txt, and return what the `cgroup` files of the process say."""
    table = _descriptors(scene)
    with SectionFile(scene, layout.HOST_FILES) as stored:
        mountinfo = _files(scene, process, stored, trouble)
        groups = _groups(scene, process, mountinfo, stored, trouble)
        block_devices.collect_block_devices(scene, process, table, stored, trouble)
        mounts = mounts_in_use(table)
        storage_clients.collect_storage_clients(scene, process, mounts, stored, trouble)
        for batch in sections(_room(process, mounts), scene.deadline, trouble):
            stored.append(batch)
    return groups


def _descriptors(scene: Scene) -> Mapping[str, Section]:
    """Return the newest descriptor table that was stored."""
    raw = scene.earlier(layout.PROC_FDS, layout.FDS) or scene.earlier(layout.WITNESS, layout.FDS)
    return {section.name: section for section in parse(raw)}


def _files(scene: Scene, process: ProcDirectory | None, stored: SectionFile, trouble: ReadFailures) -> bytes:
    """Store the fixed files, and return our own mountinfo. Without a process its own is left out."""
    mountinfo = b""
    reads = [SectionRead(path, partial(read_file, path)) for path in (*FILES, *_settings())]
    if process is not None:
        reads.append(SectionRead(f"/proc/{process.pid}/mountinfo", partial(process.read, "mountinfo", MOST_FILE)))
    reads.append(SectionRead(OWN_MOUNTS, partial(read_file, OWN_MOUNTS, MOST_FILE)))
    for batch in sections(reads, scene.deadline, trouble):
        stored.append(batch)
        mountinfo += b"".join(section.data for section in batch if section.name == OWN_MOUNTS)
    return mountinfo


def _groups(
    scene: Scene, process: ProcDirectory, mountinfo: bytes, stored: SectionFile, trouble: ReadFailures
) -> tuple[bytes, ...]:
    """Store the control groups of the process and its threads, and return what their `cgroup` files say."""
    groups = take(cgroups.membership_reads(process), scene.deadline, trouble)
    # Hundreds of threads are in the same group: their files are stored only where they tell something else.
    different = {section.data or section.error.encode(): section for section in reversed(groups.values())}
    stored.append(
        section for section in groups.values() if different[section.data or section.error.encode()] is section
    )
    memberships = tuple(section.data for section in different.values())
    for batch in sections(cgroups.reads(memberships, mountinfo), scene.deadline, trouble):
        stored.append(section for section in batch if section.error != "ENOENT")
    return memberships


def _settings() -> list[str]:
    return sorted(path for pattern in SETTINGS for path in glob.glob(pattern))


def _room(process: ProcDirectory, mounts: Sequence[Mount]) -> Iterator[SectionRead]:
    """Yield statvfs of each file system that the target has files on, through a descriptor: no path, no symlink."""
    for mount in mounts:
        if mount.kind not in {"proc", "sysfs", "devtmpfs", "devpts"}:
            yield SectionRead(
                f"statvfs {mount.point}", partial(_statvfs, f"{process.path}/fd/{mount.fds[0]}"), mount.point
            )


def _statvfs(path: str) -> bytes:
    status = os.statvfs(path)
    fields = ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail", "f_flag")
    return "".join(f"{field} {getattr(status, field)}\n" for field in fields).encode()


def _logs(scene: Scene, own: list[SectionRead], units: tuple[str, ...], trouble: ReadFailures) -> None:
    """Store what the logs and the VM's manager tell; each file is left out where there is nothing of it.

    `own` are the reads of where QEMU's own words go.
    """
    record = scene.target.record
    _plainly(scene, layout.DMESG, [SectionRead(kernel_log.KMSG, kernel_log.kernel_log, seconds=2)], trouble)
    root = record.domain.root if record.domain else ""
    name = vm_files.known_name(record)
    if configuration := vm_files.configuration(name, record.manager, root):
        store(scene, layout.VM_CONFIG, configuration, trouble)
    if tasks := vm_files.tasks(name, record.manager):
        store(scene, layout.VM_TASKS, tasks, trouble)
    _plainly(scene, layout.RRD, vm_files.rrd(name, record.manager), trouble)
    _plainly(scene, layout.VM_LOG, own, trouble)
    store(scene, layout.JOURNAL, kernel_log.journal(units), trouble)


def _plainly(scene: Scene, file: str, reads: list[SectionRead], trouble: ReadFailures) -> None:
    """Store the first of the reads that gives anything, as a file without headers; an empty one if all are empty."""
    logs = take(reads, scene.deadline, trouble).values()
    hung = {hang.name for hang in trouble.hangs}
    trouble.notes += [
        f"{section.name}: {section.error}"
        for section in logs
        if section.error not in {"", "ENOENT"} and section.name not in hung
    ]
    read = [section.data for section in logs if not section.error]
    if read:
        scene.write(file, next((data for data in read if data), b""))
