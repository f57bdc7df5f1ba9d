"""The guest's disks, with their counters at both snapshots."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from autopsy.bundle import layout
from autopsy.bundle.heap import records as heap_records
from autopsy.bundle.heap.virtio import VirtioShapes
from autopsy.dataclass import dataclass
from autopsy.facts import monitor
from autopsy.facts.cite import Cite, Fact, Known, Unknown
from autopsy.facts.command_line import CommandLine, string
from autopsy.facts.model.facts import BlockStats, DiskFact, Limits, MonitorFact
from autopsy.facts.model.left_out import LeftOutFact
from autopsy.facts.storage import virtqueues
from autopsy.facts.storage.exports import ExportFact
from autopsy.facts.storage.nodes import BlockGraph, read_command_line_again
from autopsy.facts.untrusted import mapping, number, sequence, text

PERIPHERAL = re.compile(r"/machine/peripheral/([^/]+)")
MOST_DISKS = 1024
LEGACY_LIMITS = {
    "bps": "bps-total",
    "bps_rd": "bps-read",
    "bps_wr": "bps-write",
    "iops": "iops-total",
    "iops_rd": "iops-read",
    "iops_wr": "iops-write",
    "bps_max": "bps-total-max",
    "bps_rd_max": "bps-read-max",
    "bps_wr_max": "bps-write-max",
    "iops_max": "iops-total-max",
    "iops_rd_max": "iops-read-max",
    "iops_wr_max": "iops-write-max",
    "iops_size": "iops-size",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One disk as some source names it."""

    backend: str
    qdev: str
    node: str
    inserted: Mapping[str, Any]
    io_status: str
    cite: Cite
    export: ExportFact | None = None


def gather_disks(  # noqa: PLR0917 - every source of a disk's facts, once
    talk: MonitorFact,
    heap: Fact[heap_records.HeapSnapshot],
    line: CommandLine,
    graph: BlockGraph,
    shaped: Fact[VirtioShapes],
    exports: Fact[tuple[ExportFact, ...]] | None = None,
) -> Fact[tuple[DiskFact, ...]]:
    """Return the disks by the best source there is: query-block, query-blockstats, the heap, the command line.

    A storage daemon has `exports` instead.
    """
    entries = _entries(talk, heap, line) if exports is None else _exported(exports)
    if isinstance(entries, Unknown):
        return entries
    first, again = _statistics(talk, again=False), _statistics(talk, again=True)
    disks = []
    if (left := len(entries.value) - MOST_DISKS) > 0:
        what = "there are more disks than are told"
        graph.left_out.append(LeftOutFact(what, f"{left} more", requests=False, cite=entries.cite))
    for entry in entries.value[:MOST_DISKS]:
        read_command_line_again(graph, line, entry.backend, entry.node or entry.backend)
        disks.append(_disk(entry, talk, heap, line, graph, shaped, first, again))
    return Known(tuple(disks), entries.cite)


def _entries(talk: MonitorFact, heap: Fact[heap_records.HeapSnapshot], line: CommandLine) -> Fact[tuple[Entry, ...]]:
    for question in ("query-block", "query-blockstats"):
        listed = monitor.answer(talk, question)
        if not isinstance(listed, Known):
            continue
        entries = []
        for given in map(mapping, sequence(listed.value)):
            inserted = mapping(given.get("inserted"))
            node = text(inserted.get("node-name")) or text(given.get("node-name"))
            backend, qdev = text(given.get("device")), text(given.get("qdev"))
            cite = Cite(listed.cite.file, listed.cite.line, f"device {backend or qdev or node}")
            entries.append(Entry(backend, qdev, node, inserted, text(given.get("io-status")), cite))
        return Known(tuple(entries), listed.cite)
    if isinstance(heap, Known) and heap.value.backends:
        cite = Cite(layout.evidence(layout.GDB_THREADS, layout.HEAP))
        return Known(
            tuple(
                Entry(backend.name, backend.device, backend.node_name, {}, backend.io_status, cite)
                for backend in heap.value.backends
            ),
            cite,
        )
    if line.drives or line.blockdevs:
        drives = tuple(
            Entry(name := string(drive, "id"), string(line.device_of(name) or {}, "id"), "", {}, "", line.cite)
            for drive in line.drives
        )
        used = {string(device, "drive") for device in line.devices} - {entry.backend for entry in drives} - {""}
        nodes = tuple(
            Entry("", string(line.device_of(name) or {}, "id"), name, {}, "", line.cite) for name in sorted(used)
        )
        firmware = tuple(Entry("", "", name, {}, "", line.cite) for name in line.firmware_nodes())
        return Known(drives + nodes + firmware, line.cite)
    missing = monitor.answer(talk, "query-block")
    why = missing.why if isinstance(missing, Unknown) else "query-block told nothing"
    return Unknown(layout.evidence(layout.QUERY_BLOCK, layout.QMP), why)


def _exported(exports: Fact[tuple[ExportFact, ...]]) -> Fact[tuple[Entry, ...]]:
    if isinstance(exports, Unknown):
        return exports
    return Known(
        tuple(Entry("", "", export.node, {}, "", export.cite, export) for export in exports.value), exports.cite
    )


def _disk(  # noqa: PLR0917 - every source of a disk's facts, once
    entry: Entry,
    talk: MonitorFact,
    heap: Fact[heap_records.HeapSnapshot],
    line: CommandLine,
    graph: BlockGraph,
    shaped: Fact[VirtioShapes],
    first: Fact[dict[str, BlockStats]],
    again: Fact[dict[str, BlockStats]],
) -> DiskFact:
    in_heap = _in_heap(entry, heap)
    identity = entry.export.id if entry.export else identity_of(entry.qdev, entry.backend, entry.node)
    device = line.device_of(entry.backend, entry.node) or line.device(identity) or {}
    nodes = graph.below(entry.node or entry.backend)
    stats, stats_again = _of(first, entry), _of(again, entry)
    moved: Fact[int]
    if isinstance(stats, Known) and isinstance(stats_again, Known):
        moved = Known(stats_again.value.completed - stats.value.completed, stats_again.cite)
    else:
        moved = stats if isinstance(stats, Unknown) else stats_again if isinstance(stats_again, Unknown) else _never()
    return DiskFact(
        name=identity,
        backend=entry.backend,
        device=entry.qdev,
        model=_model(device, in_heap, line, entry),
        iothread=_iothread(device, line),
        nodes=nodes,
        throttle_group=_throttle_group(entry, nodes, in_heap, line),
        limits=_limits(entry, line),
        io_status=Known(entry.io_status, entry.cite) if entry.io_status else Unknown(entry.cite.file, "no io-status"),
        stats=stats,
        stats_again=stats_again,
        completed=moved,
        in_flight=_in_flight(entry, in_heap, talk, shaped),
        quiesced=_quiesced(in_heap),
        inserted=bool(entry.inserted or entry.node or nodes),
        cite=entry.cite,
        is_export=entry.export is not None,
    )


def _never() -> Unknown:
    return Unknown(layout.evidence(layout.QUERY_STATUS, layout.QMP), "no counters")


def identity_of(qdev: str, backend: str, node: str) -> str:
    """Return the name an operator knows: the device's id, else the drive's, else the node's."""
    if match := PERIPHERAL.match(qdev):
        return match[1]
    if qdev and "/" not in qdev:
        return qdev
    return backend or qdev or node or "(nameless)"


def _in_heap(entry: Entry, heap: Fact[heap_records.HeapSnapshot]) -> Fact[heap_records.BlockBackend]:
    if isinstance(heap, Unknown):
        return heap
    path = layout.evidence(layout.GDB_THREADS, layout.HEAP)
    for backend in heap.value.backends:
        same_name = bool(entry.backend) and backend.name == entry.backend
        same_device = bool(entry.qdev) and backend.device in {entry.qdev, identity_of(entry.qdev, "", "")}
        if same_name or same_device or (not backend.name and bool(entry.node) and backend.node_name == entry.node):
            return Known(backend, Cite(path, 0, f"backend {entry.backend or entry.qdev or entry.node}"))
    return Unknown(path, "the heap walk met no such backend")


def _in_flight(
    entry: Entry, in_heap: Fact[heap_records.BlockBackend], talk: MonitorFact, shaped: Fact[VirtioShapes]
) -> Fact[int]:
    if isinstance(in_heap, Known):
        return Known(in_heap.value.in_flight, in_heap.cite)
    path = entry.qdev if entry.qdev.startswith("/") else ""
    answered = monitor.answers(talk, "x-query-virtio-queue-status", again=False)
    mine = [asked for asked in answered if path and text(asked.exchange.arguments.get("path")) == path]
    if mine:
        return Known(sum(number(mapping(asked.answer).get("inuse")) for asked in mine), mine[0].cite)
    if isinstance(owed := virtqueues.inuse(shaped, entry.qdev), Known):
        return owed
    return Unknown(
        layout.evidence(layout.GDB_THREADS, layout.HEAP), "only the heap or a virtqueue's `inuse` counts them"
    )


def _quiesced(in_heap: Fact[heap_records.BlockBackend]) -> Fact[int]:
    return Known(in_heap.value.quiesce_counter, in_heap.cite) if isinstance(in_heap, Known) else in_heap


def _model(
    device: Mapping[str, Any], in_heap: Fact[heap_records.BlockBackend], line: CommandLine, entry: Entry
) -> Fact[str]:
    if entry.export:
        return Known(f"{entry.export.kind} export", entry.cite)
    driver = string(device, "driver")
    bus = string(device, "bus").partition(".")[0]
    controller = string(line.device(bus) or {}, "driver")
    if driver:
        return Known(f"{controller} {driver}".strip() if driver.startswith(("scsi-", "ide-")) else driver, line.cite)
    if isinstance(in_heap, Known) and in_heap.value.device_type:
        return Known(in_heap.value.device_type, in_heap.cite)
    drive = next((drive for drive in line.drives if entry.backend and string(drive, "id") == entry.backend), None)
    if drive is not None and string(drive, "if"):
        return Known(string(drive, "if"), line.cite)
    return Unknown(line.cite.file, "the command line names no device for this disk")


def _iothread(device: Mapping[str, Any], line: CommandLine) -> Fact[str]:
    """Return the iothread's id (several joined by commas), empty when the main loop does the disk's I/O."""
    if not device:
        return Unknown(line.cite.file, "the command line names no device for this disk")
    controller = line.device(string(device, "bus").partition(".")[0]) or {}
    for owner in (device, controller):
        if named := string(owner, "iothread"):
            return Known(named, line.cite)
        mapped = [string(mapping(part), "iothread") for part in sequence(owner.get("iothread-vq-mapping"))]
        if mapped:
            return Known(",".join(mapped), line.cite)
    return Known("", line.cite)


def _throttle_group(
    entry: Entry, nodes: tuple[Any, ...], in_heap: Fact[heap_records.BlockBackend], line: CommandLine
) -> Fact[str]:
    """Return the group's name, empty where the disk has none."""
    if group := text(entry.inserted.get("group")):
        return Known(group, entry.cite)
    for node in nodes:
        if node.throttle_group:
            return Known(node.throttle_group, node.cite)
    if isinstance(in_heap, Known):
        return Known(in_heap.value.throttle_group, in_heap.cite)
    drive = _drive(entry, line)
    if throttling := mapping(drive.get("throttling")):
        return Known(string(throttling, "group") or entry.backend, line.cite)
    if entry.inserted or (drive and not throttling) or (entry.export and nodes):
        return Known("", entry.cite)
    return Unknown(layout.evidence(layout.QUERY_BLOCK, layout.QMP), "query-block was not answered")


def _drive(entry: Entry, line: CommandLine) -> Mapping[str, Any]:
    return next((drive for drive in line.drives if entry.backend and string(drive, "id") == entry.backend), {})


def _limits(entry: Entry, line: CommandLine) -> Fact[Limits]:
    """Return the disk's own limits: as QEMU tells them, else as it was started with."""
    if not entry.inserted:
        if throttling := mapping(_drive(entry, line).get("throttling")):
            started = ((name, string(throttling, name)) for name in LEGACY_LIMITS.values())
            return Known(Limits(tuple((name, int(value)) for name, value in started if value.isdecimal())), line.cite)
        return Unknown(layout.evidence(layout.QUERY_BLOCK, layout.QMP), "query-block was not answered")
    values = ((name, number(entry.inserted.get(key))) for key, name in LEGACY_LIMITS.items())
    return Known(Limits(tuple((name, value) for name, value in values if value)), entry.cite)


def _statistics(talk: MonitorFact, *, again: bool) -> Fact[dict[str, BlockStats]]:
    listed = monitor.answer(talk, "query-blockstats", again=again)
    if isinstance(listed, Unknown):
        return listed
    counters: dict[str, BlockStats] = {}
    for entry in map(mapping, sequence(listed.value)):
        stats = mapping(entry.get("stats"))
        names_of_it = (text(entry.get("device")), text(entry.get("qdev")), text(entry.get("node-name")))
        title = next((name for name in names_of_it if name), "")
        counted = BlockStats(
            reads=number(stats.get("rd_operations")),
            writes=number(stats.get("wr_operations")),
            flushes=number(stats.get("flush_operations")),
            unmaps=number(stats.get("unmap_operations")),
            failed=sum(number(stats.get(f"failed_{kind}_operations")) for kind in ("rd", "wr", "flush", "unmap")),
            idle_ns=number(stats["idle_time_ns"]) if "idle_time_ns" in stats else None,
            total_ns=sum(number(stats.get(f"{kind}_total_time_ns")) for kind in ("rd", "wr", "flush", "unmap")),
            cite=Cite(listed.cite.file, listed.cite.line, f"blockstats of {title}"),
        )
        for kind, name in zip(("device", "qdev", "node"), names_of_it, strict=True):
            if name:
                counters.setdefault(f"{kind} {name}", counted)
    return Known(counters, listed.cite)


def _of(counters: Fact[dict[str, BlockStats]], entry: Entry) -> Fact[BlockStats]:
    if isinstance(counters, Unknown):
        return counters
    for key in (f"device {entry.backend}", f"qdev {entry.qdev}", f"node {entry.node}"):
        if stats := counters.value.get(key):
            return Known(stats, stats.cite)
    return Unknown(counters.cite.file, "query-blockstats does not list this disk")
