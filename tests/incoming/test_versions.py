"""Which QEMU it was is read where it was said, and with it whether a known bug is in that build."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.built import pastes
from support.built.imported import diagnosis_of
from support.built.monitor_text import HMP
from support.built.pastes import DISPATCH, LOCK
from tests.incoming.test_beside import LIBVIRT, material

VERSION = {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "Debian 1:10.0.2+ds-2"}
TWICE = pastes.dump(("kvm", (*LOCK, "vnc_lock_output", "vnc_disconnect_finish", *DISPATCH)))
RCU = pastes.dump(("CPU 0/KVM", ("syscall", "qemu_event_wait", "drain_call_rcu", *DISPATCH)))


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (LIBVIRT, "7.2.0"),
        (LIBVIRT + LIBVIRT.replace("7.2.0", "8.0.0"), "8.0.0"),
        (HMP, "7.2.22"),
        (
            "$ kvm --version\nQEMU emulator version 9.2.0 (pve-qemu-kvm_9.2.0-5)\nCopyright (c) 2003\n",
            "9.2.0 (pve-qemu-kvm_9.2.0-5)",
        ),
        (json.dumps({"QMP": {"version": VERSION, "capabilities": []}}), "10.0.2 (Debian 1:10.0.2+ds-2)"),
        (json.dumps({"return": VERSION, "id": 1}), "10.0.2 (Debian 1:10.0.2+ds-2)"),
        ("QEMU is a program; the qemu version is not told here: 3.1 is another number\n", ""),
        (json.dumps({"return": {"qemu": {"major": -1, "minor": "x"}}}), ""),
    ],
)
def test_the_version_is_read_where_it_was_said(text: str, version: str, tmp_path: Path) -> None:
    assert material(tmp_path, text.encode()).qemu_version == version


def test_where_files_say_different_things_none_is_believed(tmp_path: Path) -> None:
    assert material(tmp_path, LIBVIRT.encode(), LIBVIRT.replace("7.2.0", "8.0.0").encode()).qemu_version == ""


def test_a_known_bug_is_told_by_the_version_beside_the_backtrace(tmp_path: Path) -> None:
    said = diagnosis_of(f"QEMU emulator version 8.1.0\n\n{RCU}", tmp_path / "with")
    without = diagnosis_of(RCU, tmp_path / "without")
    assert said.signature == without.signature
    assert {each.in_this_build for each in without.known_bugs} <= {"cannot tell"}
    assert {each.in_this_build for each in said.known_bugs}.isdisjoint({"cannot tell"})
