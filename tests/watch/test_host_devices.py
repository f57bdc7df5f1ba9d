"""What the host's devices below a process's files have in flight."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from autopsy.watch.signs import host_devices
from autopsy.watch.signs.host_devices import HostDevices, devices_of


def stat(*, in_flight: int, completed: int = 0) -> str:
    """Return a device's stat file, with the fields that newer kernels have."""
    return f"{completed} 0 8 1 0 0 0 0 {in_flight} 5 6 0 0 0 0 0 0\n"


def test_the_device_below_an_open_file_is_told_by_its_mount(tmp_path: Path) -> None:
    with (tmp_path / "image").open("wb") as file:
        device = os.fstat(file.fileno()).st_dev
        named = f"{os.major(device)}:{os.minor(device)}"
        if named.startswith("0:") or not Path(host_devices.SYSFS.format(named)).exists():
            pytest.skip("the tests' files lie on no device of the host's")
        assert named in devices_of(os.getpid())
        assert HostDevices().of(os.getpid(), 1).in_flight is not None


def test_a_device_that_vms_share_is_read_once_a_round(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "8:0").write_text(stat(in_flight=5))
    monkeypatch.setattr(host_devices, "SYSFS", f"{tmp_path}/{{}}")
    monkeypatch.setattr(host_devices, "devices_of", lambda _: frozenset({"8:0", "9:9"}))
    devices = HostDevices()
    assert devices.of(1, 1).in_flight == 5
    (tmp_path / "8:0").write_text(stat(in_flight=0))
    assert devices.of(2, 1).in_flight == 5
    assert devices.of(1, 2).in_flight == 0


def test_a_device_stands_as_long_as_it_has_requests_in_flight_and_completes_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(host_devices, "SYSFS", f"{tmp_path}/{{}}")
    monkeypatch.setattr(host_devices, "devices_of", lambda _: frozenset({"8:0"}))
    devices = HostDevices()
    seen = []
    for at, (in_flight, completed) in enumerate([(1, 7), (3, 7), (2, 8), (2, 8), (0, 8), (1, 8), (1, 8)]):
        (tmp_path / "8:0").write_text(stat(in_flight=in_flight, completed=completed))
        if at == 3:
            devices.of(2, at)  # a round in which this VM is not looked at forgets nothing
            continue
        seen.append(devices.of(1, at).unmoved_ns)
    assert seen == [0, 1, 0, 0, 0, 1]


def test_a_process_that_has_ended_and_one_without_a_disk_have_none_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices_of(2**22 + 1) == frozenset()
    monkeypatch.setattr(host_devices, "devices_of", lambda _: frozenset())
    assert HostDevices().of(1, 1).in_flight is None
