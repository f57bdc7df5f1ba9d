"""A busy VM that is captured again and again is none the worse."""

from __future__ import annotations

from pathlib import Path

import pytest

from autopsy.drill.machine import Machine
from support import lab
from support.verdicts import captured
from support.wedged import wedges
from support.wedged.small_guests import ENOUGH, WRITE_NOW_AND_THEN, boot_sector

TIMES = 20 if lab.SOAK else 2


def writes_on(vm: Machine) -> None:
    before = wedges.completed(vm)[1]
    lab.until("its guest wrote on", lambda: wedges.completed(vm)[1] > before + ENOUGH, seconds=wedges.BOOT_SECONDS)


@pytest.mark.live
def test_the_newest_qemu_and_its_busy_guest_live_through_one_capture_after_the_other(tmp_path: Path) -> None:
    with lab.folder() as place:
        image, serial = boot_sector(lab.disk(place / "d"), WRITE_NOW_AND_THEN), place / "serial"
        with lab.qemu(
            "11",
            *("-object", "iothread,id=io0", "-drive", f"if=none,id=disk0,format=raw,file={image}"),
            *("-device", "virtio-blk-pci,id=vd0,drive=disk0,iothread=io0", "-serial", f"file:{serial}"),
            accelerate=lab.TO_BOOT,
            boots=True,
        ) as vm:
            for _ in range(TIMES):
                writes_on(vm)
                verdict = captured(vm.pid, tmp_path)  # fails where a thread is stopped, traced, or has a signal pending
                assert verdict.where == "none", verdict
                assert vm.qmp("query-status")["status"] == "running"
            writes_on(vm)
            assert set(serial.read_text()) == {"."}  # an E where a write has failed
