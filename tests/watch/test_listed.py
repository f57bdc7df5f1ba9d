"""`ps` says how old a VM's oldest request is, where a watch runs."""

from __future__ import annotations

import msgspec

from autopsy.cli import terminal
from autopsy.cli.json_output import census_json
from autopsy.target.ps import ListedVm
from autopsy.watch.listed import with_watch
from autopsy.watch.model import SilentDisk, StallKind
from support.watching import rounds


def listed(name: str, pid: int, start_ticks: int) -> ListedVm:
    return ListedVm(
        target=f"pid:{pid}",
        manager="process",
        name=name,
        pid=pid,
        program="qemu-system",
        qemu_version="10.0.2",
        binary_replaced=False,
        state="S",
        threads=5,
        threads_in_d=0,
        cpu_percent=0.0,
        disks=1,
        monitors=(),
        signs=("a sign",),
        start_ticks=start_ticks,
    )


VMS = (listed("stuck", 10, 1), listed("well", 11, 2), listed("new", 12, 3))
SILENT = tuple(
    SilentDisk(name=name, seconds=at, vcpu_share=0.5, vcpu_share_before=0.25)
    for name, at in (("sd0", 240), ("sd1", 190))
)
LAST = rounds.of(
    rounds.vm("stuck", pid=10, start_ticks=1, stalled=StallKind.DISK, oldest_unmoved_seconds=12.34),
    rounds.vm("well", pid=11, start_ticks=2, suspect=True, silent_disks=SILENT),
    rounds.vm("was here before", pid=12, start_ticks=99, oldest_unmoved_seconds=500.0),
)


def test_each_vm_has_the_age_of_its_oldest_request_and_a_stall_is_a_sign() -> None:
    stuck, well, new = with_watch(VMS, LAST)
    assert (stuck.oldest_request_seconds, well.oldest_request_seconds) == (12.3, 0.0)
    assert stuck.signs == ("its disk stands still, says the watch", "a sign")
    words = "sd0 (like 1 more) completes nothing for 240 s, and the guest may only compute, says the watch"
    assert well.signs == (words, "a sign")
    assert new == VMS[2], "its number was another process's when the watch looked"


def test_the_table_has_the_column_only_where_a_watch_runs() -> None:
    header, *lines = terminal.ps_lines(with_watch(VMS, LAST))
    assert "OLDEST" in header.split()
    assert [line.split()[6] for line in lines] == ["12", "-", "?"]
    assert lines[0].split()[7] == "s"
    assert "OLDEST" not in next(iter(terminal.ps_lines(with_watch(VMS, None))))


def test_the_json_has_the_key_and_says_null_where_no_watch_runs() -> None:
    told = msgspec.json.decode(census_json(with_watch(VMS, LAST)))
    assert [vm["oldest_request_seconds"] for vm in told] == [12.3, 0.0, None]
    assert with_watch(VMS, None) == VMS
