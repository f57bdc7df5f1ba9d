"""What the host's devices below a process's files have in flight."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from autopsy.watch.signs import host_devices
from autopsy.watch.signs.host_devices import HostDevices, devices_of


def test_the_device_below_an_open_file_is_told_by_its_mount(tmp_path: Path) -> None:
    with (tmp_path / "image").open("wb") as file:
        device = os.fstat(file.fileno()).st_dev
        named = f"{os.major(device)}:{os.minor(device)}"
        if named.startswith("0:") or not Path(host_devices.SYSFS.format(named)).exists():
            pytest.skip("the tests' files lie on no device of the host's")
        assert named in devices_of(os.getpid())
        assert HostDevices().in_flight(os.getpid(), 1) is not None


def test_a_device_that_vms_share_is_read_once_a_round(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "8:0").write_text("       2        3\n")
    monkeypatch.setattr(host_devices, "SYSFS", f"{tmp_path}/{{}}")
    monkeypatch.setattr(host_devices, "devices_of", lambda _: frozenset({"8:0", "9:9"}))
    devices = HostDevices()
    assert devices.in_flight(1, 1) == 5
    (tmp_path / "8:0").write_text("0 0")
    assert devices.in_flight(2, 1) == 5
    assert devices.in_flight(1, 2) == 0


def test_a_process_that_has_ended_and_one_without_a_disk_have_none_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices_of(2**22 + 1) == frozenset()
    monkeypatch.setattr(host_devices, "devices_of", lambda _: frozenset())
    assert HostDevices().in_flight(1, 1) is None
