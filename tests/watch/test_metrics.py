"""A round becomes metrics: the names that rules rely on, every VM with all its series, whatever it is called."""

from __future__ import annotations

import builtins
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopsy.watch.model import (
    CaptureResult,
    MonitorOutcome,
    Round,
    SilentDisk,
    StallKind,
    Suppression,
    WatchedVm,
    WatchState,
)
from autopsy.watch.serving.labels import VmLabels
from autopsy.watch.state import MOST_WORDS, WatchSnapshot, bounded, decode, encode, own_figures
from support import lab
from support.watching import rounds

pytest.importorskip("prometheus_client")

from prometheus_client.parser import text_string_to_metric_families

from autopsy.watch.serving.metrics import Exposition

# What is relied on from outside, with the labels of each.
NAMES = {
    "autopsy_build_info": {"version"},
    "autopsy_vm_info": {"vm", "manager", "domain", "vmid", "uuid", "namespace", "qemu_version"},
    "autopsy_vm_watch_state": {"vm", "state"},
    "autopsy_vm_block_requests_in_flight": {"vm"},
    "autopsy_vm_stalled": {"vm", "kind"},
    "autopsy_vm_oldest_unmoved_request_seconds": {"vm"},
    "autopsy_vm_stalls_total": {"vm", "kind"},
    "autopsy_vm_stall_seconds_total": {"vm", "kind"},
    "autopsy_stall_duration_seconds": {"le"},
    "autopsy_vm_uninterruptible_threads": {"vm"},
    "autopsy_vm_host_device_unmoved_seconds": {"vm"},
    "autopsy_vm_silent_disk_seconds": {"vm"},
    "autopsy_vm_monitor_asks_total": {"vm", "outcome"},
    "autopsy_host_hung_tasks_total": set(),
    "autopsy_captures_total": {"vm", "result"},
    "autopsy_captures_suppressed_total": {"reason"},
    "autopsy_vm_last_bundle_timestamp_seconds": {"vm"},
    "autopsy_capture_stop_seconds": set(),
    "autopsy_store_bytes": set(),
    "autopsy_store_free_bytes": set(),
    "autopsy_watch_sample_seconds": set(),
    "autopsy_watch_samples_late_total": set(),
}
COUNTERS = {name for name in NAMES if name.endswith("_total")}

SILENT = SilentDisk(name="sd0", seconds=240.0, vcpu_share=0.5, vcpu_share_before=0.25)
ASKED = {MonitorOutcome.COUNTED: 9, MonitorOutcome.TAKEN: 1}
WELL = rounds.vm(
    "web1", requests_in_flight=0, uuid="u-1", qemu_version="10.0.2", silent_disks=(SILENT,), monitor_asks=ASKED
)
STUCK = rounds.vm(
    "102",
    manager="proxmox",
    vmid="102",
    start_ticks=7,
    stalled=StallKind.DISK,
    oldest_unmoved_seconds=12.5,
    requests_in_flight=3,
    threads_in_d=2,
    stalls={StallKind.DISK: 1},
    stall_seconds={StallKind.DISK: 12.5},
    captures={CaptureResult.SEALED: 1},
    last_bundle_at=1_700_000_000.0,
)
BLIND = rounds.vm("db", start_ticks=9, state=WatchState.UNREADABLE, stalls={StallKind.REQUEST: 4})
FULL = rounds.of(
    WELL,
    STUCK,
    BLIND,
    stall_durations=(1.0, 15.0, 700.0),
    suppressed={Suppression.VM: 2},
    stops_ms=(1.5, 2.5),
    hung_tasks=3,
)

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def text_of(last: Round) -> str:
    return Exposition().text(decode(encode(WatchSnapshot(round=last, own=own_figures())))).decode()


def series(text: str) -> Series:
    found: Series = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, f"{key} twice: Prometheus refuses the whole scrape"
            found[key] = sample.value
    return found


def value(found: Series, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def test_the_metrics_have_the_names_and_labels_that_rules_rely_on() -> None:
    text = text_of(FULL)
    told = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    ours = {name: kind for name, kind in told.items() if not name.startswith("process_")}
    assert ours.keys() == NAMES.keys()
    assert {name for name, kind in ours.items() if kind == "counter"} == COUNTERS
    assert ours["autopsy_stall_duration_seconds"] == "histogram"
    assert ours["autopsy_capture_stop_seconds"] == "summary"
    for name, labels in series(text):
        family = next((known for known in NAMES if name == known or name.removeprefix(known)[:1] == "_"), None)
        known = NAMES.get(name) if name in NAMES else NAMES.get(family or "")
        keys = {key for key, _ in labels}
        assert "pid" not in keys
        assert name.startswith("process_") or keys == known or name.endswith(("_sum", "_count")), name


def test_a_stall_shows_as_a_state_a_counter_and_its_length() -> None:
    found = series(text_of(FULL))
    assert value(found, "autopsy_vm_stalled", vm="102", kind="disk") == 1
    assert value(found, "autopsy_vm_stalled", vm="102", kind="request") == 0
    assert value(found, "autopsy_vm_stalls_total", vm="102", kind="disk") == 1
    assert value(found, "autopsy_vm_stalls_total", vm="web1", kind="disk") == 0  # from 0 on: its first stall is a rise
    assert value(found, "autopsy_vm_oldest_unmoved_request_seconds", vm="102") == 12.5
    assert value(found, "autopsy_stall_duration_seconds_bucket", le="15.0") == 2
    assert value(found, "autopsy_stall_duration_seconds_bucket", le="+Inf") == 3
    assert value(found, "autopsy_captures_total", vm="102", result="sealed") == 1
    assert value(found, "autopsy_captures_suppressed_total", reason="vm") == 2
    assert value(found, "autopsy_captures_suppressed_total", reason="storm") == 0
    assert value(found, "autopsy_capture_stop_seconds_sum") == pytest.approx(0.004)
    assert value(found, "autopsy_capture_stop_seconds_count") == 2


def test_a_disk_that_is_silent_is_told_beside_the_stalls_and_only_of_a_vm_whose_monitor_is_asked() -> None:
    found = series(text_of(FULL))
    assert value(found, "autopsy_vm_silent_disk_seconds", vm="web1") == 240
    assert value(found, "autopsy_vm_stalled", vm="web1", kind="disk") == 0
    assert value(found, "autopsy_vm_monitor_asks_total", vm="web1", outcome="counted") == 9
    assert value(found, "autopsy_vm_monitor_asks_total", vm="web1", outcome="hung") == 0
    assert not {name for name, labels in found if ("vm", "102") in labels and "silent" in name}


def test_a_vm_that_cannot_be_read_keeps_its_series_and_its_counters() -> None:
    found = series(text_of(FULL))
    assert value(found, "autopsy_vm_watch_state", vm="db", state="unreadable") == 1
    assert value(found, "autopsy_vm_watch_state", vm="db", state="watched") == 0
    assert value(found, "autopsy_vm_stalls_total", vm="db", kind="request") == 4
    of_db = {name for name, labels in found if ("vm", "db") in labels}
    of_102 = {name for name, labels in found if ("vm", "102") in labels}
    # What was not counted is not faked; and no bundle was taken.
    assert of_102 - of_db == {"autopsy_vm_block_requests_in_flight", "autopsy_vm_last_bundle_timestamp_seconds"}


def test_promtool_finds_nothing_to_say_about_the_metrics() -> None:
    if shutil.which("promtool") is None:
        lab.missing("promtool is not here: apt install prometheus")
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text_of(FULL), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_scrape_opens_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    exposition, snapshot = Exposition(), WatchSnapshot(round=FULL, own=own_figures())
    exposition.text(snapshot)

    def refuse(*words: object, **_: object) -> None:
        raise AssertionError(f"a scrape opened {words}")

    monkeypatch.setattr(builtins, "open", refuse)
    monkeypatch.setattr("os.open", refuse)
    monkeypatch.setattr("os.listdir", refuse)
    assert b"autopsy_vm_stalled" in exposition.text(snapshot)


def test_two_vms_of_one_name_are_told_apart_by_what_the_field_tells_them_apart_by() -> None:
    one = rounds.vm("web", namespace="shop", start_ticks=1)
    two = rounds.vm("web", namespace="bank", start_ticks=2)
    assert VmLabels().of((one, two)) == ("web (namespace shop)", "web (namespace bank)")
    plain = replace(one, namespace=""), replace(two, namespace="", manager="process")
    assert VmLabels().of(plain) == ("web (libvirt)", "web (process)")
    alike = replace(one, namespace="", uuid="a"), replace(two, namespace="", uuid="b")
    assert VmLabels().of(alike) == ("web (uuid a)", "web (uuid b)")


def test_a_vm_keeps_the_word_that_told_it_from_another_when_that_one_ends() -> None:
    labels = VmLabels()
    one, two = rounds.vm("web", uuid="a"), rounds.vm("web", uuid="b")
    both = labels.of((one, two))
    assert labels.of((two,)) == both[1:]
    assert labels.of(()) == ()
    assert labels.of((two,)) == ("web",)  # once nobody is called so, it is forgotten


HOSTILE = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["", "a\nb", 'a"b', "a\\", "a{b}", "x" * 1_000_000, "x" * 999_999 + "y", "\u202e", "\ud800", "é" * 200]
    ),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(HOSTILE, min_size=1, max_size=5), st.text(max_size=5))
def test_whatever_vms_are_called_a_scrape_is_whole_bounded_and_has_each_of_them(names: list[str], uuid: str) -> None:
    vms: tuple[WatchedVm, ...] = tuple(
        rounds.vm(name, pid=number, start_ticks=number // 2, target=name, domain=name, uuid=uuid)
        for number, name in enumerate(names)
    )
    text = text_of(rounds.of(*vms))
    assert len(text) < 60_000 * len(names)
    found = series(text)
    assert sum(name == "autopsy_vm_stalled" for name, _ in found) == len(names) * len(StallKind)
    assert all("\n" not in label for _, labels in found for _, label in labels)


def test_a_name_that_is_cut_still_differs_from_another_that_begins_alike() -> None:
    one, two = bounded("x" * 500 + "1"), bounded("x" * 500 + "2")
    assert one != two
    assert max(len(one), len(two)) <= MOST_WORDS


def test_nothing_but_a_process_that_serves_loads_the_client() -> None:
    words = (
        "import sys; import autopsy.watch.serving.outlets, autopsy.cli.app; print('prometheus_client' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
