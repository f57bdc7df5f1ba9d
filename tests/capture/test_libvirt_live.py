"""Real domains of a real libvirtd: found, asked through virsh, killed and started through it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from autopsy.bundle import layout, sections
from autopsy.bundle.reader import open_bundle
from autopsy.errors import ExitCode
from autopsy.target import target
from support import lab, libvirts
from support.libvirts import Libvirt

pytestmark = [pytest.mark.live, pytest.mark.timeout(300), pytest.mark.usefixtures("sole_claims")]

FIND = """
import sys
from autopsy.target import target
for word in sys.argv[1:]:
    found = target.find_target(word)
    print(found.pid, found.record.name, found.record.manager, found.record.domain.connection, found.record.domain.word)
"""


@pytest.fixture(scope="module")
def libvirtd() -> Iterator[Libvirt]:
    with libvirts.libvirt() as it:
        yield it


@pytest.fixture(scope="module")
def shelved1(libvirtd: Libvirt) -> str:
    """Return the uuid of a domain whose writes are parked in its throttle group."""
    uuid = libvirts.define(libvirtd, "shelved1", lab.disk(libvirtd.site.folder / "shelved1.raw"))
    libvirtd.wedge("shelved1")
    return uuid


def sections_of(bundle: str, file: str) -> dict[str, bytes]:
    raw = open_bundle(Path(bundle)).read(layout.evidence(layout.HOST, file))
    return {section.name: section.data for section in sections.parse(raw)}


def outcome(answer: Any, step: str) -> tuple[str, str]:
    return next((each["outcome"], each["why"]) for each in answer["steps"] if each["name"] == step)


def test_a_domain_is_found_by_name_id_and_uuid_beside_its_daemon_and_from_outside_of_its_container(
    libvirtd: Libvirt, shelved1: str
) -> None:
    number = libvirtd.virsh("domid", "shelved1")
    words = ["shelved1", shelved1, f"libvirt:{number}", "libvirt:shelved1", f"pid:{libvirtd.pid('shelved1')}"]
    done = subprocess.run(
        libvirtd.inside(sys.executable, "-c", FIND, *words), capture_output=True, text=True, check=True, timeout=60
    )
    expected = f"{libvirtd.pid('shelved1')} shelved1 libvirt qemu:///system {shelved1}"
    assert done.stdout.splitlines() == [expected] * len(words)
    for word in words:
        found = target.find_target(word)  # we do not see /run/libvirt as libvirtd does
        os.close(found.pidfd)
        assert (found.pid, found.record.name, found.record.manager) == (libvirtd.pid("shelved1"), "shelved1", "libvirt")
        assert found.record.domain is not None
        assert found.record.domain.root == f"/proc/{found.pid}/root"
        assert found.record.domain.connection == ""
        assert "libvirtd (pid" in found.record.monitors[0].held_by
    listed = json.loads(libvirtd.autopsy("ps", "--json").stdout)
    assert ("libvirt:shelved1", "libvirt", 1) in [(vm["target"], vm["manager"], vm["disks"]) for vm in listed]


def test_a_wedged_domain_is_captured_by_name_killed_and_started_again_through_libvirt(
    libvirtd: Libvirt, shelved1: str, tmp_path: Path
) -> None:
    before = libvirtd.pid("shelved1")
    dry = libvirtd.autopsy("capture", "shelved1", "--then-kill", "--then-start", "--dry-run", "--even-if-healthy",
                           "--fast",
                           "--json", "--out", tmp_path)  # fmt: skip
    told = libvirts.answer(dry)
    assert dry.returncode == 0
    assert told["kill"]["how"].startswith(
        f"dry run, nothing was killed: process {before} (shelved1) would be, by virsh"
    )
    assert f"virsh -q -c qemu:///system start --domain={shelved1}" in told["kill"]["how"]
    assert (libvirtd.state("shelved1"), libvirtd.pid("shelved1")) == ("running", before)

    why = "asked through libvirtd: it marks the domain tainted (custom-monitor)"
    assert outcome(told, layout.QUERY_STATUS)[0] == "Collected"
    assert why in outcome(told, layout.QUERY_STATUS)[1]
    assert "tainted: custom-monitor" in (libvirtd.site.folder / "log" / "qemu" / "shelved1.log").read_text()

    stored = sections_of(told["bundle"], layout.VM_CONFIG)
    assert b"<domstatus state='running'" in stored["/run/libvirt/qemu/shelved1.xml"]
    assert b"passwd='(removed)'" in stored["/run/libvirt/qemu/shelved1.xml"]
    assert b"<name>shelved1</name>" in stored["/etc/libvirt/qemu/shelved1.xml"]
    sealed = open_bundle(Path(told["bundle"]))
    assert b"starting up libvirt version" in sealed.read(layout.evidence(layout.HOST, layout.VM_LOG))
    key = (libvirtd.site.folder / "lib" / "qemu").glob("domain-*-shelved1/master-key.aes")
    for secret in (libvirts.SECRET.encode(), next(key).read_bytes()):
        assert not [name for name in sealed.names() if secret in sealed.read(name)]

    refused = libvirtd.autopsy("capture", shelved1, "--then-kill", "--fast", "--json", "--out", tmp_path)
    assert refused.returncode == ExitCode.NOT_STORED, refused.stderr
    assert libvirtd.pid("shelved1") == before

    insisting = ("--then-kill", "--even-if-needless", "--then-start", "--fast", "--json", "--out", tmp_path)
    done = libvirtd.autopsy("capture", shelved1, *insisting)
    told = libvirts.answer(done)
    assert done.returncode == 0, done.stderr
    assert told["verdict"]["where"] == "throttle"
    assert told["kill"]["done"]
    assert told["kill"]["how"].startswith("virsh destroy")
    assert told["start"]["done"]
    assert told["start"]["how"].startswith("started again by virsh start: process ")
    assert libvirtd.state("shelved1") == "running"
    assert libvirtd.pid("shelved1") != before


def test_a_stuck_state_change_lock_is_told_and_the_kill_leaves_libvirts_books_right(
    libvirtd: Libvirt, tmp_path: Path
) -> None:
    libvirts.define(libvirtd, "db1", lab.disk(libvirtd.site.folder / "db1.raw"))
    pid = libvirtd.pid("db1")
    with stopped(pid), waiting(libvirtd, "db1"):
        words = ("--then-kill", "--even-if-needless", "--fast", "--json", "--out", tmp_path)
        done = libvirtd.autopsy("capture", "db1", *words)
        told = libvirts.answer(done)
        assert outcome(told, layout.QUERY_STATUS)[0] == "Skipped"
        assert "libvirtd (occupied" in outcome(told, layout.QUERY_STATUS)[1]
        assert outcome(told, layout.QUERY_BLOCK)[0] == "Skipped"
        assert done.returncode == 0, done.stderr
        assert told["verdict"]["where"] == "process"
        assert told["kill"]["done"]
    lab.until("libvirt has closed its books", lambda: libvirtd.state("db1") == "shut off")


def test_a_libvirtd_that_hangs_is_not_taken_for_a_qemu_that_does(libvirtd: Libvirt, tmp_path: Path) -> None:
    libvirts.define(libvirtd, "app1", lab.disk(libvirtd.site.folder / "app1.raw"))
    words = ("--then-kill", "--even-if-healthy", "--fast", "--json", "--out", tmp_path)
    with lab.stopped(libvirtd.daemon):
        told = libvirts.answer(libvirtd.autopsy("capture", "app1", *words))
        how, why = outcome(told, layout.QUERY_STATUS)
        assert how == "Failed"
        assert why.startswith("libvirtd does not answer (virsh domcontrol, 2 s): ")
        assert f"{libvirtd.daemon.pid} is in State T" in why
        assert "libvirtd does not answer" in told["verdict"]["headline"]
        assert told["verdict"]["where"] != "control"
        (beside,) = (each for each in told["verdict"]["secondary"] if each["signature"] == "manager-silent")
        assert f"libvirtd {libvirtd.daemon.pid}" in beside["objects"]
        assert "is stopped" in beside["headline"]
        assert told["kill"]["done"]
        assert told["kill"]["how"].startswith("virsh destroy and SIGKILL; gone after")
    lab.until("libvirt has closed its books", lambda: libvirtd.state("app1") == "shut off")


def test_a_domain_that_cannot_die_does_not_take_libvirtd_with_it(tmp_path: Path) -> None:
    with lab.file_system() as storage, libvirts.libvirt() as libvirtd:
        libvirts.define(libvirtd, "db2", lab.disk(storage.mount / "db2.raw"))
        pid = libvirtd.pid("db2")
        with lab.frozen(storage):
            libvirtd.wedge("db2", writes=1)
            lab.until("a write hangs", lambda: lab.any_thread_in(pid, "D"))
            done = libvirtd.autopsy("capture", "db2", "--then-kill", "--fast", "--json", "--out", tmp_path)
            told = libvirts.answer(done)
            assert done.returncode == ExitCode.STILL_THERE
            assert told["verdict"]["where"] == "host"
            assert told["kill"]["how"].startswith("SIGKILL (virsh destroy would hang libvirtd")
            assert libvirtd.virsh("list", "--all", within=10)  # it answers
        lab.until("the thaw has let it go", lambda: libvirtd.state("db2") == "shut off", seconds=40)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """SIGSTOP a QEMU that libvirtd started."""
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
        yield
    finally:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGCONT)
        os.close(pidfd)


@contextmanager
def waiting(libvirtd: Libvirt, name: str) -> Iterator[None]:
    """Have another client of libvirtd wait for an answer that does not come."""
    words = libvirtd.inside("virsh", "-c", "qemu:///system", "qemu-monitor-command", name, "--hmp", "info status")
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as client:
        try:
            lab.until("libvirtd waits for the monitor", lambda: "occupied" in libvirtd.virsh("domcontrol", name))
            yield
        finally:
            client.kill()
