"""Which limits on memory the VM's control groups have reached, and that its threads are said to wait for them."""

from __future__ import annotations

import pytest

from autopsy.bundle.sections import Section
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from support.built import cases, families

MEBIBYTE = 1 << 20
UNIFIED, OLDER = "/sys/fs/cgroup/machine.slice/vm.scope", "/sys/fs/cgroup/memory/machine/vm"
NO_LIMIT = 0x7FFFFFFFFFFFF000  # what v1 writes for none


def group(folder: str, **files: int | str) -> list[Section]:
    return [Section(f"{folder}/memory.{name}", f"{told}\n".encode()) for name, told in files.items()]


def told(*sections: Section, waits: bool = True) -> Diagnosis:
    case = families.memory_wait("mem_cgroup_oom_synchronize", "try_charge_memcg") if waits else cases.nbd()
    case.host += sections
    return diagnose(gather_facts(case.bundle()))


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (
            group(UNIFIED, current=512 * MEBIBYTE, high="max", max=512 * MEBIBYTE),
            f"control group {UNIFIED}, which is at its limit of 512 MiB (memory.max)",
        ),
        (
            group(UNIFIED, current=513 * MEBIBYTE, high=512 * MEBIBYTE, max="max"),
            f"control group {UNIFIED}, which is at its limit of 512 MiB (memory.high)",
        ),
        (
            group(OLDER, usage_in_bytes=64 * MEBIBYTE, limit_in_bytes=64 * MEBIBYTE),
            f"control group {OLDER}, which is at its limit of 64 MiB (memory.limit_in_bytes)",
        ),
        (
            [
                *group(UNIFIED, current=100 * MEBIBYTE, high="max", max="max"),
                *group("/sys/fs/cgroup/machine.slice", current=999 * MEBIBYTE, max=1000 * MEBIBYTE),
            ],
            "control group /sys/fs/cgroup/machine.slice, which is at its limit of 1000 MiB (memory.max)",
        ),
    ],
    ids=["max", "high", "v1", "of the slice above"],
)
def test_the_limit_that_is_reached_is_told_of_threads_that_wait_for_memory(files: list[Section], says: str) -> None:
    found = told(*files)
    assert found.signature == "memory-reclaim"
    assert found.headline.endswith(says)
    name = says.split()[2].rstrip(",")
    assert f"cgroup {name}" in found.objects
    assert any(advice.command.startswith(f"cat {name}/memory.") for advice in found.advice)


@pytest.mark.parametrize(
    "files",
    [
        group(UNIFIED, current=100 * MEBIBYTE, high="max", max=512 * MEBIBYTE),
        group(OLDER, usage_in_bytes=64 * MEBIBYTE, limit_in_bytes=NO_LIMIT),
        group(OLDER, usage_in_bytes="", limit_in_bytes="x"),
        group(UNIFIED, current=5),
        group(UNIFIED, current=0, max=0),
        [],
    ],
    ids=["room", "none", "damaged", "cut", "zero", "no group"],
)
def test_no_group_is_named_that_has_room_or_of_which_nothing_is_known(files: list[Section]) -> None:
    found = told(*files)
    assert found.signature == "memory-reclaim"
    assert "control group" not in found.headline
    assert not any("cgroup /sys" in name for name in found.objects)


def test_a_group_at_its_limit_is_no_finding_where_nothing_waits_for_memory() -> None:
    found = told(*group(UNIFIED, current=512 * MEBIBYTE, max=512 * MEBIBYTE), waits=False)
    assert found.signature == "nbd-silent"
    assert UNIFIED not in found.headline
