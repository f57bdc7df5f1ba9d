"""Which processes the watch takes for VMs, and when."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from autopsy.target.platforms.platform import Roots, VmClaim
from autopsy.target.qemu_process import QemuProcess
from autopsy.watch import discovery
from autopsy.watch.discovery import Discovery
from autopsy.watch.loop import Watch
from support import lab

pytestmark = pytest.mark.live


def test_a_vm_that_begins_between_two_looks_at_all_processes_is_found_within_seconds() -> None:
    found = Discovery()
    found.refresh()
    with lab.qemu("7.2") as vm:
        began = time.monotonic()
        lab.until("it is found", lambda: found.refresh_young() or any(pid == vm.pid for pid, _ in found.vms))
        assert time.monotonic() - began < discovery.YOUNGEST + 4
        before = dict(found.vms)
        found.refresh_young()
        assert found.vms == before


def test_what_lives_for_a_moment_alone_is_not_asked_who_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Discovery()
    found.refresh()
    monkeypatch.setattr(discovery, "YOUNGEST", 60.0)
    with lab.qemu("7.2") as vm:
        found.refresh_young()
        assert not any(pid == vm.pid for pid, _ in found.asked)
        found.refresh()
        assert any(pid == vm.pid for pid, _ in found.vms)


def test_after_asking_for_long_none_that_is_new_is_asked_for_a_multiple_of_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = Discovery()
    monkeypatch.setattr(discovery, "YOUNGEST", 0.0)
    monkeypatch.setattr(discovery, "REST", 1000.0)
    with lab.qemu("7.2") as first:
        found.refresh_young()
        assert any(pid == first.pid for pid, _ in found.vms)
        with lab.qemu("7.2") as second:
            found.refresh_young()
            assert not any(pid == second.pid for pid, _ in found.vms)
            found.refresh()
            assert any(pid == second.pid for pid, _ in found.vms)


def test_a_vm_whose_manager_says_only_later_that_it_is_its_is_called_as_that_calls_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    claims: list[VmClaim] = []

    def all_claims(_pids: Sequence[int], _roots: Roots) -> tuple[VmClaim, ...]:
        return tuple(claims)

    def is_true(_claim: VmClaim, _process: QemuProcess) -> bool:
        return True

    monkeypatch.setattr(discovery, "all_claims", all_claims)
    monkeypatch.setattr(discovery, "is_true", is_true)
    with lab.qemu("7.2", name="web1") as vm:
        watch = Watch(discovery=Discovery(only=frozenset({vm.pid})), captures=False)
        try:
            assert [each.target for each in watch.round().vms] == [f"pid:{vm.pid}"]
            claims.append(VmClaim("libvirt", "web1", vm.pid, tmp_path / "pid"))
            watch.found_at = -1e9
            assert [each.target for each in watch.round().vms] == ["libvirt:web1"]
        finally:
            watch.close()
