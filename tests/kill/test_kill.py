"""A kill happens on sealed evidence alone, hits what was captured, and is written down."""

from __future__ import annotations

import hashlib
import os
import socket
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec
import pytest

from autopsy.bundle.manifest import Domain, TargetRecord
from autopsy.bundle.seal import Sealed
from autopsy.drill.machine import Machine
from autopsy.errors import ExitCode, NoSuchVm, NotPermitted
from autopsy.kill.audit_log import KillNote, note_path
from autopsy.kill.kill import Killed, kill, still_there
from autopsy.linux.child import in_child
from autopsy.target import target
from autopsy.target.identity import Asleep
from autopsy.target.platforms.platform import Roots
from autopsy.target.target import Target
from support import lab

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def roots(short: Path) -> Roots:
    (short / "libvirt" / "qemu").mkdir(parents=True)
    return Roots(run=short, log=short / "log")


@pytest.fixture
def sealed(tmp_path: Path) -> Sealed:
    """Return what seal() would: to kill() the bundle's bytes mean nothing."""
    bundle = tmp_path / "autopsy-web-20240101T000000Z.tar.zst"
    bundle.write_bytes(b"evidence")
    return Sealed(bundle, hashlib.sha256(b"evidence").hexdigest(), 8)


@contextmanager
def held(vm: Machine, roots: Roots) -> Iterator[Target]:
    found = target.find_target(f"pid:{vm.pid}", roots)
    try:
        yield found
    finally:
        os.close(found.pidfd)


@contextmanager
def journal(place: Path) -> Iterator[socket.socket]:
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as listening:
        listening.bind(str(place))
        listening.settimeout(5)
        yield listening


def changed(found: Target, **fields: object) -> Target:
    return Target(msgspec.structs.replace(found.record, **fields), found.pidfd)


def note_of(sealed: Sealed) -> KillNote:
    return msgspec.json.decode(note_path(sealed.path).read_bytes(), type=KillNote)


def writes_virsh(place: Path, script: str) -> str:
    path = place / "virsh"
    path.write_text(f'#!/bin/sh\necho "$@" >> {place}/asked\n{script}\n')
    path.chmod(0o700)
    return str(path)


@pytest.mark.live
def test_a_kill_is_sigkill_and_leaves_a_note_and_a_line_in_the_journal(roots: Roots, sealed: Sealed) -> None:
    with lab.qemu("7.2", name="doomed\n<3>forged") as vm, held(vm, roots) as found, journal(roots.log) as lines:
        killed = kill(found, sealed, roots=roots)
        assert (killed.how, killed.gone, killed.stuck, killed.notes) == ("SIGKILL", True, (), ())
        assert killed.words.startswith("SIGKILL; gone after ")
        assert vm.process.child.wait(5) == -9
        note = note_of(sealed)
        assert (note.gone, note.pid, note.sha256) == (True, vm.pid, sealed.sha256)
        assert note.bundle == sealed.path.name
        assert note.who.uid == os.getuid()
        assert note.start_ticks == found.record.start_ticks
        path = note_path(sealed.path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert {each.name for each in path.parent.iterdir()} == {sealed.path.name, path.name}
        first, second = lines.recv(4096), lines.recv(4096)
        assert first.startswith(f"<29>autopsy[{os.getpid()}]: about to be killed".encode())
        assert sealed.sha256.encode() in first
        assert b"gone after" in second
        assert b"\n" not in first + second


@pytest.mark.live
def test_a_stopped_vm_is_killed_as_well(roots: Roots, sealed: Sealed) -> None:
    with lab.qemu("7.2") as vm, held(vm, roots) as found, lab.stopped(vm):
        killed = kill(found, sealed, roots=roots)
        assert killed.gone
        assert "the journal was not told" in killed.notes[0]  # there is none here, and that is no reason not to kill


@pytest.mark.live
def test_another_process_than_the_captured_one_is_not_killed(roots: Roots, sealed: Sealed) -> None:
    with lab.qemu("7.2") as vm, held(vm, roots) as found:
        record = found.record
        for other in (
            changed(found, start_ticks=record.start_ticks + 1),
            changed(found, exe="/usr/bin/another", build_id="00"),
            changed(found, exe="/usr/bin/another", build_id=""),
        ):
            with pytest.raises(NoSuchVm, match="no longer what was captured") as refusal:
                kill(other, sealed, roots=roots)
            assert refusal.value.exit_code == ExitCode.NO_SUCH_VM
        assert vm.process.alive()
        assert vm.qmp("query-status")["status"] == "running"
        assert not note_path(sealed.path).exists()
        # A binary that was moved away by an upgrade is still the same program.
        assert kill(changed(found, exe="/usr/bin/moved"), sealed, roots=roots).gone


@pytest.mark.live
def test_a_vm_that_ended_by_itself_needs_no_kill(roots: Roots, sealed: Sealed) -> None:
    with lab.qemu("7.2") as vm, held(vm, roots) as found:
        vm.process.end()
        killed = kill(found, sealed, roots=roots)
        assert killed.gone
        assert killed.words == "it had ended by itself before the kill"
        assert not note_path(sealed.path).exists()


@pytest.mark.live
def test_without_permission_nothing_is_sent_and_nothing_is_written(roots: Roots, sealed: Sealed) -> None:
    lab.need_root()
    with lab.qemu("7.2") as vm, held(vm, roots) as found:
        assert in_child(lambda: _kills_as_nobody(found, sealed, roots), 10) == b"NotPermitted"
        assert vm.process.alive()
        assert not note_path(sealed.path).exists()


def _kills_as_nobody(found: Target, sealed: Sealed, roots: Roots) -> bytes:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    try:
        kill(found, sealed, roots=roots)
    except NotPermitted as error:
        return type(error).__name__.encode()
    return b"killed"


def test_threads_that_sleep_alike_are_told_by_their_number() -> None:
    asleep = [Asleep(tid, "worker", "percpu_rwsem_wait") for tid in range(8)]
    words = Killed("SIGKILL", gone=False, ms=10_000, stuck=tuple(asleep)).words
    assert words == "SIGKILL; still there after 10 s: 8 worker threads in percpu_rwsem_wait sleep uninterruptibly"


@pytest.mark.live
def test_a_process_that_cannot_die_ticks_and_is_told_with_its_thread_and_wchan(roots: Roots, sealed: Sealed) -> None:
    with lab.file_system() as storage:
        image = lab.disk(storage.mount / "d.raw")
        disk = ("-drive", f"if=none,id=d0,file={image},format=raw,aio=threads", "-device", "virtio-blk-pci,drive=d0")
        with lab.qemu("7.2", *disk) as vm, held(vm, roots) as found:
            with lab.frozen(storage):
                vm.qemu_io("d0", "aio_write 0 4k")
                lab.until("a write hangs", lambda: lab.any_thread_in(vm.pid, "D"))
                told: list[str] = []
                killed = kill(found, sealed, roots=roots, seconds=0.5, tell=told.append)
                assert not killed.gone
                assert "s, 1 thread still in D (" in told[-1]
                (stuck,) = killed.stuck
                assert stuck.wchan
                assert f"{stuck.tid} ({stuck.comm}) in {stuck.wchan} sleeps uninterruptibly" in killed.words
                error = still_there(found, killed)
                assert error.exit_code == ExitCode.STILL_THERE
                note = note_of(sealed)
                assert note.gone is False
                assert [(each.tid, each.wchan) for each in note.stuck] == [(stuck.tid, stuck.wchan)]
                assert target.is_alive(found)
                with pytest.raises(NoSuchVm, match=f"cannot die: thread {stuck.tid} in {stuck.wchan}"):
                    target.find_target(f"pid:{vm.pid}", roots)
            lab.until("the thaw has let it go", lambda: not target.is_alive(found))


@pytest.mark.live
def test_a_bundles_disk_that_hangs_does_not_hold_the_kill(roots: Roots, sealed: Sealed) -> None:
    with lab.file_system() as storage, lab.qemu("7.2") as vm, held(vm, roots) as found, journal(roots.log):
        there = Sealed(storage.mount / sealed.path.name, sealed.sha256, sealed.size)
        with lab.frozen(storage):
            killed = kill(found, there, roots=roots)
        assert killed.gone
        assert len(killed.notes) == 1
        assert "could not be written: no answer" in killed.notes[0]


def as_libvirts(found: Target, roots: Roots, pid: int | None = None) -> Target:
    (roots.libvirt[0] / "web1.pid").write_text(f"{pid or found.pid}\n")
    return changed(found, manager="libvirt", name="web1", domain=Domain(connection="qemu:///system", word="web1"))


@pytest.mark.live
@pytest.mark.parametrize(
    ("script", "how"),
    [
        ("kill -9 PID", "virsh destroy"),
        ("sleep 60 & wait", "virsh destroy and SIGKILL"),
        ("exit 1", "SIGKILL (virsh destroy failed)"),
    ],
)
def test_a_domain_is_destroyed_through_libvirt_and_by_us_if_that_is_slow(
    script: str, how: str, roots: Roots, sealed: Sealed, short: Path
) -> None:
    with lab.qemu("7.2") as vm, held(vm, roots) as found:
        virsh = writes_virsh(short, script.replace("PID", str(vm.pid)))
        killed = kill(as_libvirts(found, roots), sealed, roots=roots, program=virsh)
        assert killed.gone
        assert killed.how == how
        assert (short / "asked").read_text() == "-q -c qemu:///system destroy --domain=web1\n"


@pytest.mark.live
def test_a_domain_that_was_started_anew_is_not_destroyed_in_the_others_place(
    roots: Roots, sealed: Sealed, short: Path
) -> None:
    with lab.qemu("7.2") as old, lab.qemu("7.2") as new, held(old, roots) as found:
        killed = kill(as_libvirts(found, roots, new.pid), sealed, roots=roots, program=writes_virsh(short, "exit 0"))
        assert (killed.how, killed.gone) == ("SIGKILL", True)
        assert not (short / "asked").exists()
        assert new.process.alive()


@pytest.mark.live
def test_without_virsh_a_domain_is_killed_by_signal(roots: Roots, sealed: Sealed) -> None:
    with lab.qemu("7.2") as vm, held(vm, roots) as found:
        killed = kill(as_libvirts(found, roots), sealed, roots=roots, program="/nonexistent/virsh")
        assert killed.gone
        assert killed.how == "SIGKILL (no virsh: No such file or directory)"


def test_a_process_that_is_still_taken_apart_is_told_so() -> None:
    record = TargetRecord(
        pid=1, name="x", manager="process", start_ticks=1, exe="", exe_deleted=False, build_id="", qemu_version=""
    )
    killed = Killed("SIGKILL", gone=False, ms=10_000)
    assert killed.words == "SIGKILL; still there after 10 s: the kernel is still taking it apart"
    stuck = Killed("SIGKILL", gone=False, ms=10_000, stuck=(Asleep(7, "worker\x1b[2J", ""),))
    assert "thread 7 (worker?[2J) in ? sleeps" in still_there(Target(record, 0), stuck).cause


def test_killing_on_evidence_that_is_not_sealed_is_a_type_error(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    snippet = tmp_path / "unsealed.py"
    snippet.write_text(
        textwrap.dedent("""
            from pathlib import Path
            from autopsy.bundle.seal import Sealed
            from autopsy.kill.kill import Killed, kill
            from autopsy.capture.staging.staging import Staging
            from autopsy.target.target import Target

            def right(target: Target, sealed: Sealed) -> Killed:
                return kill(target, sealed)

            def wrong(target: Target, staging: Staging, bundle: Path) -> None:
                kill(target, staging)
                kill(target, bundle)
                kill(target, None)
                kill(target)
        """)
    )
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-error-summary", snippet],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [
        line.partition(": error: ")[0].rpartition(":")[2] for line in checked.stdout.splitlines() if ": error: " in line
    ]
    assert lines == ["12", "13", "14", "15"], checked.stdout + checked.stderr
