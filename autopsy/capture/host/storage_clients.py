"""What storage that is no plain block device says of itself: its sessions, its pools, its requests on the wire."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from functools import partial

import msgspec

from autopsy.bundle.sections import REST, Section
from autopsy.capture.reading.procfs import ProcDirectory, read_file
from autopsy.capture.reading.reader import ReadFailures, SectionFile, SectionRead, sections, take
from autopsy.capture.step import Scene
from autopsy.linux.mounts import Mount

# Small files only, each decisive: a suspended pool, a session in recovery, calls that no server answers.
PATTERNS = (
    "/proc/drbd",
    "/proc/net/rpc/nfs",
    "/proc/spl/kstat/zfs/*/state",
    "/sys/class/fc_remote_ports/*/port_state",
    "/sys/class/iscsi_session/*/recovery_tmo",
    "/sys/class/iscsi_session/*/state",
    "/sys/class/iscsi_session/*/targetname",
    "/sys/class/nvme/*/address",
    "/sys/class/nvme/*/state",
    "/sys/class/nvme/*/transport",
    "/sys/class/scsi_host/*/state",
    "/sys/kernel/debug/ceph/*/monc",
    "/sys/kernel/debug/ceph/*/osdc",
    "/sys/kernel/debug/sunrpc/rpc_clnt/*/tasks",
)
MOST_FILES = 512
MOST_FILE = 64 << 10
MOST_STATISTICS = 1 << 20


def collect_storage_clients(
    scene: Scene, process: ProcDirectory, mounts: Sequence[Mount], stored: SectionFile, trouble: ReadFailures
) -> None:
    """Append every such file that this host has, named by its path, and the statistics of NFS mounts in use."""
    listing = take([SectionRead("storage", _present)], scene.deadline, trouble)["storage"]
    paths = msgspec.json.decode(listing.data or b"[]", type=list[str])
    if len(paths) > MOST_FILES or listing.error:
        why = listing.error or f"{len(paths) - MOST_FILES} more files were not read"
        stored.append([Section(f"storage{REST}", b"", error=why)])
    for batch in sections(_reads(process, paths[:MOST_FILES], mounts), scene.deadline, trouble):
        stored.append(batch)


def _present() -> bytes:
    return msgspec.json.encode([path for pattern in PATTERNS for path in sorted(glob.glob(pattern))])


def _reads(process: ProcDirectory, paths: list[str], mounts: Sequence[Mount]) -> Iterator[SectionRead]:
    for path in paths:
        yield SectionRead(path, partial(read_file, path, MOST_FILE), fate=path.rpartition("/")[0])
    if any(mount.kind.startswith("nfs") for mount in mounts):
        path = f"/proc/{process.pid}/mountstats"
        yield SectionRead(path, partial(process.read, "mountstats", MOST_STATISTICS))
