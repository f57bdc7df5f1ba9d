"""A kill needs evidence, a wedge, and nobody's work in its way; it says beforehand what it costs."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from autopsy.bundle import layout as names
from autopsy.bundle import sections
from autopsy.bundle.manifest import Clocks, Domain, Host, Manifest, StepRecord, TargetRecord
from autopsy.bundle.records import QmpExchange
from autopsy.bundle.seal import Sealed
from autopsy.capture.step import Collected
from autopsy.commands.capture import fulfil
from autopsy.commands.capture_options import CaptureOptions
from autopsy.drill.machine import Machine
from autopsy.errors import ExitCode, UsageError
from autopsy.facts import platform
from autopsy.facts.gather import gather_facts
from autopsy.kill.audit_log import KillNote, note_path
from autopsy.kill.kill import kill
from autopsy.kill.leftover_resources import Estate, LeftoverFile, _is_its_own, estate_of, left_by
from autopsy.kill.permission import Insistence, Refusal, licence
from autopsy.kill.restart import command_for, start_again
from autopsy.target import target
from autopsy.target.platforms.platform import Roots
from autopsy.target.target import Target
from support import lab
from support.asking import a_monitor, capture_of

CLOCKS = Clocks(utc="2026-11-20T03:15:00.000000Z", zone="+0000 UTC", monotonic_ns=0)
RECORD = TargetRecord(
    pid=1, name="102", manager="proxmox", start_ticks=1, exe="", exe_deleted=False, build_id="", qemu_version=""
)


class Stored:
    """Evidence of a few files."""

    def __init__(self, **files: bytes) -> None:
        self.files = files
        host = Host(name="", kernel="", architecture="x86_64", distribution="", page_size=4096, cpus=2, boot_id="")
        self.manifest = Manifest(
            schema=1, autopsy="0", options=(), began=CLOCKS, ended=CLOCKS, host=host, target=RECORD, steps=()
        )

    def read(self, path: str) -> bytes:
        return self.files.get(path, b"")

    def names(self) -> tuple[str, ...]:
        return tuple(self.files)


def config(*files: tuple[str, bytes]) -> dict[str, bytes]:
    rendered = sections.render(sections.Section(name, data) for name, data in files)
    return {names.evidence(names.HOST, names.VM_CONFIG): rendered}


def told_by_qmp(question: str, answer: Any) -> dict[str, bytes]:
    exchange = QmpExchange(
        question=question, outcome="answered", asked_ns=1, ms=1, deadline_ms=1, monitor="m", answer=answer
    )
    return {names.evidence(names.QUERY_STATUS, names.QMP): msgspec.json.encode(exchange) + b"\n"}


def ongoing(files: dict[str, bytes]) -> tuple[str, ...]:
    evidence = Stored(**files)
    return platform.ongoing(gather_facts(evidence), evidence)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (told_by_qmp("query-migrate", {"status": "postcopy-paused"}), ("a migration (postcopy-paused)",)),
        (told_by_qmp("query-migrate", {"status": "completed"}), ()),
        (
            told_by_qmp(
                "query-jobs",
                [
                    {
                        "id": "drive-scsi0",
                        "type": "backup",
                        "status": "running",
                        "current-progress": 1,
                        "total-progress": 4,
                    }
                ],
            ),
            ("a backup job (drive-scsi0: running, 25 %)",),
        ),
        (told_by_qmp("query-jobs", [{"id": "x", "type": "mirror", "status": "concluded"}]), ()),
        (
            config(("/etc/pve/qemu-server/102.conf", b"cores: 2\nlock: snapshot\n")),
            ("Proxmox VE holds `lock: snapshot` on its configuration",),
        ),
        (config(("/etc/pve/qemu-server/102.conf", b"cores: 2\n\n[before]\nlock: backup\n")), ()),
        (
            config(("/run/libvirt/qemu/web1.xml", b"<domstatus><job type='none' async='migration out' phase='x'/>")),
            ("libvirt is at a job of its own (migration out)",),
        ),
        (config(("/run/libvirt/qemu/web1.xml", b"<domstatus><job type='query' async='none'/>")), ()),
    ],
)
def test_what_a_kill_would_cut_off_is_told(files: dict[str, bytes], words: tuple[str, ...]) -> None:
    assert ongoing(files) == words


@pytest.mark.live
def test_a_mirror_under_way_is_told_of_a_real_vm(short: Path) -> None:
    image = lab.disk(short / "d.raw")
    disk = ("-drive", f"if=none,id=d0,file={image},format=raw", "-device", "virtio-blk-pci,drive=d0")
    with lab.qemu("7.2", *disk) as vm:
        vm.qmp("drive-mirror", device="d0", target=str(short / "copy.raw"), format="raw", sync="full", speed=1)
        (told,) = ongoing(asked(vm, short))
    assert told.startswith("a mirror job (d0: ")


@pytest.mark.live
def test_a_migration_under_way_is_told_of_a_real_vm(short: Path) -> None:
    with lab.qemu("7.2") as vm:
        vm.qmp("migrate", uri="exec:exec sleep 20 <&0")  # it never reads what QEMU sends
        assert ongoing(asked(vm, short)) == ("a migration (active)",)


def asked(vm: Machine, place: Path) -> dict[str, bytes]:
    with capture_of(place, vm.pid, a_monitor(vm.monitor)) as capture:
        assert isinstance(capture.query_status(seconds=20), Collected)
    path = names.evidence(names.QUERY_STATUS, names.QMP)
    return {path: (place / path).read_bytes()}


@pytest.mark.parametrize(
    ("files", "state"),
    [
        (("/etc/pve/ha/manager_status", b'{"service_status":{"vm:102":{"state":"started","node":"a"}}}'), "started"),
        (("/etc/pve/ha/manager_status", b"[1"), ""),
        (("/etc/pve/ha/resources.cfg", b"ct: 102\n\tstate stopped\n\nvm: 102\n\tstate disabled\n"), "disabled"),
        (("/etc/pve/ha/resources.cfg", b"vm: 102\n\tgroup x\n"), "started"),
        (("/etc/pve/ha/resources.cfg", b"vm: 1020\n\tstate stopped\n"), ""),
    ],
)
def test_high_availability_is_known_by_its_own_files(files: tuple[str, bytes], state: str) -> None:
    assert platform.ha_state(Stored(**config(files)), "102") == state


def step(name: str, outcome: Any, why: str = "") -> StepRecord:
    return StepRecord(name=name, impact="none", outcome=outcome, why=why, start_ns=0, end_ns=1)


def test_a_required_step_that_is_missing_forbids_the_kill() -> None:
    steps = (step("witness", "Collected"), step("freeze", "TimedOut", "no end within 5 s"))
    assert licence(None, steps, ("witness",), Insistence()) is None
    assert licence(None, steps, ("freeze",), Insistence(even_if_healthy=True)) == Refusal(
        "--require freeze, but it was TimedOut (no end within 5 s)", ExitCode.NOT_STORED
    )
    assert licence(None, steps, ("host",), Insistence(even_if_healthy=True)) == Refusal(
        "--require host, but it was not reached", ExitCode.NOT_STORED
    )


def test_an_interrupted_capture_kills_nothing() -> None:
    ended = msgspec.structs.replace(step("host", "Failed", "in whatever words"), interrupted=True)
    refusal = licence(None, (ended,), (), Insistence(even_if_healthy=True))
    assert refusal is not None
    assert refusal.exit_code == ExitCode.INTERRUPTED


@pytest.mark.parametrize("wish", [{"then_start": True}, {"dry_run": True}])
def test_what_follows_a_kill_is_refused_without_one(wish: dict[str, bool]) -> None:
    with pytest.raises(UsageError, match="no kill for it to follow"):
        fulfil(CaptureOptions(name="x", options=None, places=(), words=(), **wish), None)  # type: ignore[arg-type]  # never reached


def test_a_plain_process_is_not_started_again_and_that_is_said() -> None:
    record = msgspec.structs.replace(RECORD, manager="process")
    started = start_again(Target(record, 0))
    assert not started.done
    assert "evidence/witness/cmdline" in started.words
    assert "`systemctl start vm@web.service`" in start_again(Target(record, 0), "vm@web.service").words


def test_each_manager_starts_its_own() -> None:
    assert command_for(Target(RECORD, 0)) == ("qm", "start", "102")
    domain = Domain(connection="qemu:///system", word="uuid")
    record = msgspec.structs.replace(RECORD, manager="libvirt", domain=domain)
    assert command_for(Target(record, 0)) == ("virsh", "-q", "-c", "qemu:///system", "start", "--domain=uuid")
    inside = msgspec.structs.replace(record, domain=Domain(connection="", word="uuid", root="/proc/1/root"))
    assert command_for(Target(inside, 0)) == ()
    assert "KubeVirt" in start_again(Target(inside, 0)).words


@pytest.mark.live
def test_what_a_killed_vm_leaves_behind_is_told_and_written_down(short: Path, tmp_path: Path) -> None:
    pidfile, socket = short / "vm.pid", short / "agent"
    words = ("-pidfile", str(pidfile), "-chardev", f"socket,id=a,path={socket},server=on,wait=off")
    bundle = tmp_path / "autopsy-t.tar.zst"
    bundle.write_bytes(b"evidence")
    with lab.qemu("7.2", *words) as vm:
        found = target.find_target(f"pid:{vm.pid}", Roots(run=short))
        try:
            assert left_by(estate_of(found)) != ()
            killed = kill(found, Sealed(bundle, "0" * 64, 8), roots=Roots(run=short, log=short / "log"))
        finally:
            os.close(found.pidfd)
        assert killed.gone
        assert f"socket {socket}" in killed.left
        assert f"socket {vm.monitor}" in killed.left
        assert f"pidfile {pidfile}" not in killed.left or pidfile.exists()
        note = msgspec.json.decode(note_path(bundle).read_bytes(), type=KillNote)
        assert note.left == killed.left
        socket.unlink(missing_ok=True)
        socket.touch()
        somebody_elses = Estate((LeftoverFile("socket", str(socket), (0, 0)),), group="", locks=())
        assert left_by(somebody_elses) == ()


@pytest.mark.live
def test_who_still_lives_in_the_cgroup_after_the_kill_is_told(short: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "autopsy-t.tar.zst"
    bundle.write_bytes(b"evidence")
    with lab.qemu("7.2") as vm, own_scope() as group, subprocess.Popen(["sleep", "60"]) as companion:
        try:
            for pid in (vm.pid, companion.pid):
                (group / "cgroup.procs").write_text(str(pid))
            found = target.find_target(f"pid:{vm.pid}", Roots(run=short))
            try:
                killed = kill(found, Sealed(bundle, "0" * 64, 8), roots=Roots(run=short, log=short / "log"))
            finally:
                os.close(found.pidfd)
            assert f"in its cgroup /{group.name} still run {companion.pid} (sleep)" in killed.left
        finally:
            companion.kill()


@contextmanager
def own_scope() -> Iterator[Path]:
    lab.need_root()
    root = next(iter(lab._mounts("cgroup2")), None)
    if root is None:
        lab.missing("no cgroup v2 is mounted")
    group = root / f"autopsy-{secrets.token_hex(4)}.scope"
    group.mkdir()
    try:
        yield group
    finally:
        lab.until("the cgroup is empty", lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


def test_a_login_session_and_a_slice_are_nobodys_cgroup() -> None:
    for group in ("", "/", "/user.slice/user-0.slice/session-3.scope", "/system.slice", "/init.scope"):
        assert not _is_its_own(group)
    for group in (
        "/machine.slice/machine-qemu\\x2d1\\x2dweb1.scope",
        "/qemu.slice/102.scope",
        "/system.slice/vm.service",
    ):
        assert _is_its_own(group)
