"""A claim of libvirt's is believed only where folder, files, socket and process are one user's, by a real libvirtd."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from autopsy.bundle.manifest import Domain
from autopsy.bundle.reader import open_bundle
from autopsy.drill.process import DrillProcess, start
from autopsy.drill.site import Site, site
from autopsy.kill.restart import start_again
from autopsy.target.platforms import libvirt
from autopsy.target.platforms.owned import speakers
from autopsy.target.platforms.platform import Roots
from autopsy.target.target import Target, find_target
from support import lab, libvirts

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("sole_claims")]

MARK = "autopsy-tests"  # in a runtime folder that a test has made: its process
SMALL = ("-nodefaults", "-no-user-config", "-display", "none", "-machine", "none")
TO_KILL = ("--fast", "--then-kill", "--even-if-healthy", "--json", "--out")
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Attacker:
    """A local user who has a runtime folder, as logind makes one."""

    uid: int
    run: Path
    there: Site

    def starts(self, *words: str | Path, log: str) -> DrillProcess:
        """Run a program as that user."""
        ids = ("--reuid", str(self.uid), "--regid", str(self.uid), "--clear-groups")
        clean = ("env", "-i", "PATH=/usr/sbin:/usr/bin:/bin", f"HOME={self.run}", f"XDG_RUNTIME_DIR={self.run}")
        return start(self.there, ["setpriv", *ids, *clean, *words], log=log)

    def writes(self, path: Path, text: str) -> None:
        """Write a file of that user's."""
        path.write_text(text)
        os.chown(path, self.uid, self.uid)

    def claims(self, name: str, pid: int, uuid: str = "") -> Path:
        """Lay the files of a session's libvirt that has a domain; return the folder that its sockets go to."""
        folder = self.run / "libvirt" / "qemu" / "run"
        folder.mkdir(parents=True, exist_ok=True)
        for each in (folder, *folder.parents[:2]):
            os.chown(each, self.uid, self.uid)
        self.writes(folder / f"{name}.pid", f"{pid}\n")
        if uuid:
            self.writes(
                folder / f"{name}.xml",
                f"<domstatus state='running' pid='{pid}'><monitor path='/x' type='unix'/>"
                f"<domain type='kvm' id='1'><name>{name}</name><uuid>{uuid}</uuid></domain></domstatus>",
            )
        return folder.parent.parent


def _free_user() -> int:
    """Return a user that nobody is and who has no runtime folder, once what killed test runs have left is gone."""
    folders = Path("/run/user")
    for mark in folders.glob(f"*/{MARK}"):
        if not Path(f"/proc/{mark.read_text()}").exists():
            shutil.rmtree(mark.parent)
    system = (user.pw_uid for user in pwd.getpwall() if 0 < user.pw_uid < 1000)
    return next(uid for uid in system if not (folders / str(uid)).exists())


@pytest.fixture
def attacker() -> Iterator[Attacker]:
    lab.need_root()
    uid = _free_user()
    run = Path("/run/user") / str(uid)
    made = not run.parent.exists()
    with site() as there:
        there.folder.chmod(0o755)
        run.parent.mkdir(exist_ok=True)
        run.mkdir(mode=0o700)
        try:
            (run / MARK).write_text(str(os.getpid()))
            os.chown(run, uid, uid)
            yield Attacker(uid, run, there)
        finally:
            there.undo.callback(run.parent.rmdir if made else bool)
            there.undo.callback(shutil.rmtree, run)


@contextmanager
def daemon(path: Path, uid: int) -> Iterator[socket.socket]:
    """Listen where a libvirtd would, as a user's program that waits for root to come."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        os.chown(path, uid, uid)
        listening.listen(9)
        listening.setblocking(False)  # noqa: FBT003 - socket's own signature
        yield listening


def visitors(listening: socket.socket) -> list[int]:
    """Return the uids of those who have connected."""
    found = []
    while True:
        try:
            connection, _ = listening.accept()
        except BlockingIOError:
            return found
        with connection:
            found.append(struct.unpack("=iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1])


def autopsy(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "autopsy", *map(str, words)],
        capture_output=True, text=True, timeout=120, check=False, cwd=ROOT,
    )  # fmt: skip


def end(pid: int, pidfd: int) -> None:
    """End a daemon that is nobody's child."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.close(pidfd)
    lab.until("it has ended", lambda: not Path(f"/proc/{pid}/exe").exists())


def listed(pid: int) -> tuple[str, str]:
    """Return by what word and manager `ps` tells of a process."""
    return next((vm["target"], vm["manager"]) for vm in json.loads(autopsy("ps", "--json").stdout) if vm["pid"] == pid)


@pytest.mark.live
def test_a_users_claim_has_root_neither_question_nor_end_anothers_domain(attacker: Attacker, tmp_path: Path) -> None:
    with libvirts.libvirt() as it:
        uuid = libvirts.define(it, "bystander", lab.disk(it.site.folder / "b.raw"))
        words = (lab.build("7.2").binary, *SMALL, "-name", "guest=evil", "-uuid", uuid)
        evil = attacker.starts(*words, log="evil.log")
        libvirt_folder = attacker.claims("evil", evil.pid, uuid)
        (libvirt_folder / "libvirt-sock").symlink_to("/run/libvirt/libvirt-sock")
        evil.wait_until("it is a QEMU", lambda: "qemu" in os.readlink(f"/proc/{evil.pid}/exe"))
        done = it.autopsy("capture", f"pid:{evil.pid}", *TO_KILL, tmp_path)
        told = libvirts.answer(done)
        assert told["kill"]["how"].startswith("SIGKILL; gone"), done.stderr
        assert it.state("bystander") == "running"
        assert "custom-monitor" not in (it.site.folder / "log" / "qemu" / "bystander.log").read_text()


@pytest.mark.live
@pytest.mark.parametrize("tells_uuid", [False, True])
def test_a_users_claim_on_roots_own_vm_is_not_believed(attacker: Attacker, *, tells_uuid: bool, tmp_path: Path) -> None:
    uuid = "11111111-2222-3333-4444-555555555555"
    with lab.qemu("7.2", "-uuid", uuid, name="claimed1") as vm:
        folder = attacker.claims("claimed1", vm.pid, uuid if tells_uuid else "")
        with daemon(folder / "virtqemud-sock", attacker.uid) as listening:
            assert listed(vm.pid) == (f"pid:{vm.pid}", "process")
            done = autopsy("capture", "claimed1", "--dry-run", *TO_KILL, tmp_path)
            told = json.loads(done.stdout)
            assert f"process {vm.pid} (claimed1) would be, by SIGKILL" in told["kill"]["how"]
            assert visitors(listening) == []


@pytest.mark.live
def test_another_users_domain_of_the_same_name_is_not_the_vm_started_again(attacker: Attacker) -> None:
    words = (lab.build("7.2").binary, *SMALL, "-name", "guest=claimed1")
    other = attacker.starts(*words, log="claimed1.log")
    other.wait_until("it is a QEMU", lambda: "qemu" in os.readlink(f"/proc/{other.pid}/exe"))
    folder = attacker.claims("claimed1", other.pid)
    with daemon(folder / "virtqemud-sock", attacker.uid), lab.qemu("7.2") as killed:
        found = find_target(f"pid:{other.pid}")
        assert found.record.manager == "libvirt"
        nowhere = Domain(connection="test:///default", word="no-such-domain")  # its virsh starts nothing
        record = msgspec.structs.replace(found.record, pid=killed.pid, domain=nowhere)
        assert not start_again(Target(record, found.pidfd), seconds=5).done
        theirs = msgspec.structs.replace(found.record, pid=killed.pid)
        assert start_again(Target(theirs, found.pidfd), seconds=5).done
        os.close(found.pidfd)


@pytest.mark.live
def test_a_users_own_claim_leads_to_that_users_daemon_with_that_users_rights_alone(
    attacker: Attacker, tmp_path: Path
) -> None:
    uuid = "11111111-2222-3333-4444-555555555555"
    words = (lab.build("7.2").binary, *SMALL, "-name", "guest=own", "-uuid", uuid)
    own = attacker.starts(*words, log="own.log")
    own.wait_until("it is a QEMU", lambda: "qemu" in os.readlink(f"/proc/{own.pid}/exe"))
    folder = attacker.claims("own", own.pid, uuid)
    with daemon(folder / "virtqemud-sock", attacker.uid) as listening:
        assert listed(own.pid) == ("libvirt:own", "libvirt")
        autopsy("capture", "own", "--fast", "--out", tmp_path)
        assert set(visitors(listening)) == {attacker.uid}
        os.chown(folder / "virtqemud-sock", 0, 0)
        autopsy("capture", "own", "--fast", "--out", tmp_path)
        assert visitors(listening) == []


@pytest.mark.live
def test_a_real_sessions_domain_is_found_questioned_and_destroyed_as_its_user(
    attacker: Attacker, tmp_path: Path
) -> None:
    for program in ("libvirtd", "virtlogd"):
        if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin") is None:
            lab.missing(f"{program} is not here: apt install libvirt-daemon-system")
        attacker.starts(program, "--pid-file", attacker.run / f"{program}.pid", log=f"{program}.log")
    socket_there = attacker.run / "libvirt" / "libvirt-sock"
    lab.until("the session's daemon is there", socket_there.exists)
    xml = attacker.run / "mine.xml"
    attacker.writes(
        xml,
        "<domain type='qemu'><name>mine</name><memory unit='MiB'>32</memory><os><type arch='x86_64'>hvm</type></os>"
        f"<devices><emulator>{lab.build('7.2').binary}</emulator><memballoon model='none'/></devices></domain>",
    )
    created = attacker.starts("virsh", "-c", "qemu:///session", "create", xml, log="virsh.log")
    pidfile = attacker.run / "libvirt" / "qemu" / "run" / "mine.pid"
    lab.until("the domain is there", lambda: not created.alive())
    pid = int(pidfile.read_text()) if pidfile.exists() else pytest.fail(created.log.read_text())
    attacker.there.undo.callback(end, pid, os.pidfd_open(pid))
    assert listed(pid) == ("libvirt:mine", "libvirt")
    done = autopsy("capture", "mine", *TO_KILL, tmp_path)
    told = json.loads(done.stdout)
    assert told["kill"]["how"].startswith("virsh destroy; gone"), done.stderr
    assert "asked through libvirtd" in next(each["why"] for each in told["steps"] if each["name"] == "qmp.query-status")


@pytest.mark.live
def test_a_users_domain_that_bears_anothers_name_is_not_given_that_ones_files(
    attacker: Attacker, tmp_path: Path
) -> None:
    """Whose configuration and log they are would be told wrong, and shown to whoever is shown the bundle."""
    name = f"autopsy-other-{os.getpid()}"
    words = (lab.build("7.2").binary, *SMALL, "-name", f"guest={name}")
    own = attacker.starts(*words, log="own.log")
    own.wait_until("it is a QEMU", lambda: "qemu" in os.readlink(f"/proc/{own.pid}/exe"))
    attacker.claims(name, own.pid)
    others = (Path(f"/etc/libvirt/qemu/{name}.xml"), Path(f"/var/log/libvirt/qemu/{name}.log"))
    try:
        for each in others:
            each.parent.mkdir(parents=True, exist_ok=True)
            each.write_text("another VM's\n")
        autopsy("capture", f"pid:{own.pid}", "--fast", "--out", tmp_path)
    finally:
        for each in others:
            each.unlink(missing_ok=True)
    held = open_bundle(next(tmp_path.glob("*.tar.zst")))
    assert held.manifest.target.manager == "libvirt"
    assert [file for file, data in held.files.items() if b"another VM's" in data] == []


def test_a_folder_that_others_have_a_hand_in_claims_nothing(short: Path) -> None:
    lab.need_root()
    roots = Roots(run=short)
    folder = short / "libvirt" / "qemu"
    folder.mkdir(parents=True)
    (folder / "claimed1.pid").write_text(f"{os.getpid()}\n")
    (folder / "theirs.pid").write_text(f"{os.getpid()}\n")
    os.chown(folder / "theirs.pid", 5, 5)
    assert [claim.name for claim in libvirt.claims(roots)] == ["claimed1"]
    folder.parent.chmod(0o777)
    assert libvirt.claims(roots) == ()
    folder.parent.chmod(0o755)
    os.chown(folder.parent, 5, 5)
    assert libvirt.claims(roots) == ()
    os.chown(folder.parent, 0, 0)
    folder.rename(short / "moved")
    folder.symlink_to(short / "moved")
    assert libvirt.claims(roots) == ()


def test_a_sessions_folder_must_be_the_users_whose_number_it_bears(short: Path) -> None:
    lab.need_root()
    roots = Roots(run=short)
    for number in ("5", "6"):
        folder = short / "user" / number / "libvirt" / "qemu" / "run"
        folder.mkdir(parents=True)
        (folder / "w.pid").write_text(f"{os.getpid()}\n")
        for each in (folder / "w.pid", folder, *folder.parents[:3]):
            os.chown(each, 5, 5)
    assert [(claim.name, claim.owner) for claim in libvirt.claims(roots)] == [("w", 5)]


def test_a_container_is_spoken_for_by_its_root_and_the_processs_own_user() -> None:
    status = b"Name:\tq\nUid:\t100107\t100107\t100107\t100107\nGid:\t1\t1\t1\t1\n"
    assert speakers(status, b"         0          0 4294967295\n") == {0, 100107}
    assert speakers(status, b"         0     100000      65536\n") == {100000, 100107}
    assert speakers(status, b"         1     100000      65536\n") == {100107}
