"""What a block device is made of is followed through partitions and slaves to every loop device's file."""

from __future__ import annotations

from pathlib import Path

import pytest

from autopsy.linux.layers import Loop, loops_below, number_of


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """A volume (253:0) of one partition (7:5) of a loop device (7:0), whose file was deleted, and one that is whole."""
    devices = tmp_path / "devices"
    for name, number in (("loop0", "7:0"), ("loop0/loop0p1", "7:5"), ("loop1", "7:1"), ("dm-0", "253:0")):
        (devices / name).mkdir(parents=True, exist_ok=True)
        (devices / name / "dev").write_text(f"{number}\n")
        (tmp_path / number).symlink_to(devices / name)
    (devices / "loop0/loop0p1/partition").write_text("1\n")
    for name, file in (("loop0", "/srv/a b (deleted)"), ("loop1", "/srv/c")):
        (devices / name / "loop").mkdir()
        (devices / name / "loop/backing_file").write_text(f"{file}\n")
    (devices / "dm-0/slaves").mkdir()
    (devices / "dm-0/slaves/loop0p1").symlink_to(devices / "loop0/loop0p1")
    (devices / "dm-0/slaves/loop1").symlink_to(devices / "loop1")
    return tmp_path


def test_a_volume_leads_to_the_files_of_all_its_loop_devices(sysfs: Path) -> None:
    assert set(loops_below("253:0", sysfs)) == {Loop("loop0", "/srv/a b"), Loop("loop1", "/srv/c")}
    assert list(loops_below("7:1", sysfs)) == [Loop("loop1", "/srv/c")]


def test_what_sysfs_does_not_know_has_nothing_below(sysfs: Path) -> None:
    assert list(loops_below("8:99", sysfs)) == []


def test_devices_that_are_made_of_each_other_come_to_an_end(sysfs: Path) -> None:
    (sysfs / "devices/loop1/slaves").mkdir()
    (sysfs / "devices/loop1/slaves/dm-0").symlink_to(sysfs / "devices/dm-0")
    assert len(list(loops_below("253:0", sysfs))) == 2


def test_a_block_device_is_known_by_its_name_without_a_look_at_its_node(tmp_path: Path) -> None:
    (tmp_path / "loop2").mkdir()
    (tmp_path / "loop2/dev").write_text("7:2\n")
    assert number_of("loop2", tmp_path) == "7:2"
    assert number_of("no-such", tmp_path) == ""
    assert [number_of(name, tmp_path / "loop2") for name in ("..", ".", "a\0b", "../loop2")] == ["", "", "", ""]
