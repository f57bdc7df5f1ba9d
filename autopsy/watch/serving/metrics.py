"""Turns the last finished round into Prometheus metrics; it never looks at a process or at /proc."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.metrics_core import Metric

from autopsy import __version__
from autopsy.watch.model import CaptureResult, MonitorOutcome, Round, StallKind, Suppression, WatchedVm, WatchState
from autopsy.watch.serving.labels import VmLabels
from autopsy.watch.state import OwnFigures, WatchSnapshot

DURATIONS = (2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0)  # seconds
Vms = tuple[tuple[str, WatchedVm], ...]


class RoundCollector:
    """What prometheus-client asks at a scrape: the metrics of the snapshot that it was given last."""

    def __init__(self) -> None:
        self.snapshot: WatchSnapshot | None = None
        self._labels = VmLabels()

    def collect(self) -> Iterator[Metric]:
        """Yield each metric with all its series."""
        yield _info()
        if self.snapshot is None:
            return
        last = self.snapshot.round
        vms = tuple(zip(self._labels.of(last.vms), last.vms, strict=True))
        yield from _of_vms(vms)
        yield from _of_monitors(tuple((label, vm) for label, vm in vms if vm.monitor_asks))
        yield from _of_captures(vms, last)
        yield from _of_the_host(last)
        yield from _of_the_watch(last)
        yield from _of_the_process(self.snapshot.own)


class Exposition:
    """The text that a scrape is answered with, made once for each snapshot and only if somebody asks."""

    def __init__(self) -> None:
        self._collector = RoundCollector()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self._collector)

    def text(self, snapshot: WatchSnapshot) -> bytes:
        """Return a snapshot in Prometheus' text format."""
        self._collector.snapshot = snapshot
        text: bytes = generate_latest(self._registry)
        return text


def _info() -> Metric:
    info = InfoMetricFamily("autopsy_build", "Which autopsy watches.")
    info.add_metric([], {"version": __version__})
    return info


def _of_vms(vms: Vms) -> Iterator[Metric]:
    info = InfoMetricFamily("autopsy_vm", "Who a VM is, to join with what other exporters call it.", labels=["vm"])
    for label, vm in vms:
        known = {
            "manager": str(vm.manager),
            "domain": vm.domain,
            "vmid": vm.vmid,
            "uuid": vm.uuid,
            "namespace": vm.namespace,
            "qemu_version": vm.qemu_version,
        }
        info.add_metric([label], known)
    yield info
    yield _one_of(
        "autopsy_vm_watch_state",
        "Whether and how the VM can be watched: 1 for the state that it is in.",
        "state",
        WatchState,
        ((label, vm.state) for label, vm in vms),
    )
    yield _one_of(
        "autopsy_vm_stalled",
        "Whether something of the VM stands still now.",
        "kind",
        StallKind,
        ((label, vm.stalled) for label, vm in vms),
    )
    yield _gauge(
        "autopsy_vm_block_requests_in_flight",
        "Block requests under way inside QEMU; absent while they cannot be counted.",
        ((label, vm.requests_in_flight) for label, vm in vms if vm.requests_in_flight is not None),
    )
    yield _gauge(
        "autopsy_vm_oldest_unmoved_request_seconds",
        "For how long the oldest request that does not move has not moved.",
        ((label, vm.oldest_unmoved_seconds) for label, vm in vms),
    )
    yield _gauge(
        "autopsy_vm_uninterruptible_threads",
        "Threads in state D.",
        ((label, vm.threads_in_d) for label, vm in vms),
    )
    yield _gauge(
        "autopsy_vm_host_device_unmoved_seconds",
        "For how long a host's device below the VM's disks has had requests in flight, of whoever, and completed none.",
        ((label, vm.host_unmoved_seconds) for label, vm in vms if vm.host_unmoved_seconds is not None),
    )
    yield _count_of(
        "autopsy_vm_stalls", "Stalls that were seen, short ones too.", vms, lambda vm: vm.stalls, by=("kind", StallKind)
    )
    yield _count_of(
        "autopsy_vm_stall_seconds",
        "Seconds that were spent in stalls.",
        vms,
        lambda vm: vm.stall_seconds,
        by=("kind", StallKind),
    )


def _of_monitors(vms: Vms) -> Iterator[Metric]:
    """Yield what came of asking monitors; nothing of VMs that were not asked."""
    yield _gauge(
        "autopsy_vm_silent_disk_seconds",
        "For how long a disk that used to complete requests has completed none while the guest goes on: a suspicion.",
        ((label, max((disk.seconds for disk in vm.silent_disks), default=0.0)) for label, vm in vms),
    )
    yield _count_of(
        "autopsy_vm_monitor_asks",
        "Times that the VM's monitor was to be asked, by what came of it.",
        vms,
        lambda vm: vm.monitor_asks,
        by=("outcome", MonitorOutcome),
    )


def _of_captures(vms: Vms, last: Round) -> Iterator[Metric]:
    yield _count_of(
        "autopsy_captures",
        "Captures that the watch has started, by how they ended.",
        vms,
        lambda vm: vm.captures,
        by=("result", CaptureResult),
    )
    suppressed = CounterMetricFamily(
        "autopsy_captures_suppressed", "Captures that a limit kept from being started or full.", labels=["reason"]
    )
    for reason in Suppression:
        suppressed.add_metric([reason], last.suppressed.get(reason, 0))
    yield suppressed
    yield _gauge(
        "autopsy_vm_last_bundle_timestamp_seconds",
        "When the newest bundle of the VM was sealed.",
        ((label, vm.last_bundle_at) for label, vm in vms if vm.last_bundle_at is not None),
    )
    stops = SummaryMetricFamily("autopsy_capture_stop_seconds", "How long captures have stopped VMs for.")
    stops.add_metric([], count_value=len(last.stops_ms), sum_value=sum(last.stops_ms) / 1000)
    yield stops


def _of_the_host(last: Round) -> Iterator[Metric]:
    durations = HistogramMetricFamily("autopsy_stall_duration_seconds", "How long stalls lasted that have ended.")
    buckets = [(str(edge), float(sum(seconds <= edge for seconds in last.stall_durations))) for edge in DURATIONS]
    durations.add_metric([], [*buckets, ("+Inf", float(len(last.stall_durations)))], sum(last.stall_durations))
    yield durations
    if last.hung_tasks is not None:
        yield CounterMetricFamily(
            "autopsy_host_hung_tasks",
            "Tasks that the kernel found hung since it was started (kernel.hung_task_detect_count).",
            value=last.hung_tasks,
        )
    yield GaugeMetricFamily("autopsy_store_bytes", "What the stored bundles take.", value=last.store_bytes)
    yield GaugeMetricFamily(
        "autopsy_store_free_bytes", "What the file system of the store has left.", value=last.store_free_bytes
    )


def _of_the_watch(last: Round) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "autopsy_watch_sample_seconds", "How long the last round over all VMs took.", value=last.sample_seconds
    )
    yield CounterMetricFamily(
        "autopsy_watch_samples_late", "Rounds that began later than they should have.", value=last.samples_late
    )


def _of_the_process(own: OwnFigures) -> Iterator[Metric]:
    yield CounterMetricFamily("process_cpu_seconds", "CPU that the watch has used.", value=own.cpu_seconds)
    yield GaugeMetricFamily("process_resident_memory_bytes", "Memory of the watch.", value=own.resident_bytes)
    yield GaugeMetricFamily("process_open_fds", "Descriptors that the watch has open.", value=own.open_descriptors)
    yield GaugeMetricFamily("process_start_time_seconds", "When the watch began.", value=own.started_at)


def _gauge(name: str, help_text: str, series: Iterable[tuple[str, float]]) -> Metric:
    gauge = GaugeMetricFamily(name, help_text, labels=["vm"])
    for label, value in series:
        gauge.add_metric([label], value)
    return gauge


def _one_of(
    name: str, help_text: str, what: str, choices: type[StrEnum], series: Iterable[tuple[str, StrEnum | None]]
) -> Metric:
    """Return a gauge that is 1 for one of the choices at most, and 0 for the others: no series comes and goes."""
    gauge = GaugeMetricFamily(name, help_text, labels=["vm", what])
    for label, value in series:
        for choice in choices:
            gauge.add_metric([label, choice], float(choice is value))
    return gauge


def _count_of(
    name: str,
    help_text: str,
    vms: Vms,
    counts: Callable[[WatchedVm], Mapping[Any, float]],
    *,
    by: tuple[str, type[StrEnum]],
) -> Metric:
    """Return a counter with a series for every choice, from 0 on: only what was there before can be seen to grow."""
    what, choices = by
    counter = CounterMetricFamily(name, help_text, labels=["vm", what])
    for label, vm in vms:
        counted = counts(vm)
        for choice in choices:
            counter.add_metric([label, choice], counted.get(choice, 0))
    return counter
