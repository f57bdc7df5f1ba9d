"""What a host lets a capture do is tried, and said with what to do about it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from autopsy.bundle.manifest import TargetRecord
from autopsy.cli.doctor import lines
from autopsy.doctor import kernel, programs, snapshot, symbols
from autopsy.doctor.checks import Check, CheckedHost, Result, VmChecks, lacks, note, ok
from autopsy.doctor.distribution import Distribution, distribution
from autopsy.doctor.own_process import sleeping_process
from support import lab

ROOT = Path(__file__).resolve().parents[2]
HERE = Distribution(name="", family="debian")
RELEASES = {
    "debian": ('PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nVERSION_CODENAME=bookworm\nID=debian\n', "debian"),
    "ubuntu": ("ID=ubuntu\nID_LIKE=debian\nVERSION_CODENAME=noble\n", "ubuntu"),
    "mint": ('ID=linuxmint\nID_LIKE="ubuntu debian"\nVERSION_CODENAME=wilma\n', "ubuntu"),
    "alma": ('ID="almalinux"\nID_LIKE="rhel centos fedora"\n', "fedora"),
    "oracle": ('ID="ol"\nID_LIKE="fedora"\n', "fedora"),
    "rhel": ('ID="rhel"\nID_LIKE="fedora"\n', "fedora"),
    "sles": ('ID="sles"\nID_LIKE="suse"\n', "suse"),
    "leap": ("ID='opensuse-leap'\nID_LIKE='suse opensuse'\n", "suse"),
    "nixos": ("ID=nixos\n", "other"),
    "none": ("", "other"),
}


def by_name(checks: list[dict[str, str]]) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in checks}


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False


def doctor(*before: str) -> subprocess.CompletedProcess[str]:
    words = [*before, sys.executable, "-m", "autopsy", "doctor", "--json"]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)


@pytest.mark.parametrize("name", RELEASES)
def test_a_distribution_is_known_by_its_own_word_or_by_what_it_is_like(name: str, tmp_path: Path) -> None:
    text, family = RELEASES[name]
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text(text)
    assert distribution(tmp_path).family == family


def test_proxmox_is_known_though_it_calls_itself_debian(tmp_path: Path) -> None:
    (tmp_path / "etc/pve").mkdir(parents=True)
    (tmp_path / "etc/os-release").write_text(RELEASES["debian"][0])
    assert distribution(tmp_path).family == "proxmox-ve"


@pytest.mark.parametrize(
    ("family", "codename", "command"),
    [
        ("debian", "bookworm", "'deb http://debug.mirrors.debian.org/debian-debug bookworm-debug main'"),
        (
            "debian",
            "bookworm",
            "bookworm-proposed-updates-debug main' >/etc/apt/sources.list.d/debug.list && apt update",
        ),
        ("ubuntu", "noble", "apt install ubuntu-dbgsym-keyring && printf"),
        ("ubuntu", "noble", "'deb http://ddebs.ubuntu.com noble-updates main restricted universe multiverse'"),
        ("proxmox-ve", "bookworm", "apt update && apt install qemu-dbgsym=1-2"),
        ("fedora", "", "dnf debuginfo-install qemu-1-2"),
        ("suse", "", "zypper --plus-content debug install qemu-debuginfo=1-2"),
    ],
)
def test_symbols_come_by_each_distributions_own_means(family: str, codename: str, command: str) -> None:
    here = Distribution(name="", family=family, codename=codename)
    assert command in here.install_symbols("qemu", "1-2", known=False)


def test_an_archive_that_apt_knows_already_is_not_added_again() -> None:
    here = Distribution(name="", family="debian", codename="sid")
    assert here.install_symbols("qemu", "1-2", known=True) == "apt install qemu-dbgsym=1-2"


def test_no_word_of_a_package_manager_reaches_a_command_line_unless_it_is_a_package_and_a_version() -> None:
    assert symbols._sound("qemu-kvm-core", "17:9.1.0-15.el9") is not None
    assert symbols._sound("x; rm -rf /", "1") is None
    assert symbols._sound("qemu", "$(reboot)") is None


QEMU = TargetRecord(
    pid=1,
    name="vm",
    manager="process",
    start_ticks=0,
    exe="/usr/bin/qemu-system-x86_64",
    exe_deleted=False,
    build_id="ab",
    qemu_version="7.2",
)
ANSWERS = {
    "dpkg-query -S": "qemu-system-x86: /usr/bin/qemu-system-x86_64",
    "dpkg-query -W": "1:7.2-7",
    "apt-cache madison": "",
    "rpm -qf": "qemu-kvm-core 17:9.1.0-15.el9",
}


@pytest.mark.parametrize(
    ("family", "answers", "command"),
    [
        ("proxmox-ve", {}, "apt update && apt install qemu-system-x86-dbgsym=1:7.2-7"),
        ("debian", {"apt-cache madison": " x-dbgsym | 1:7.2-7 | http"}, "apt install qemu-system-x86-dbgsym=1:7.2-7"),
        ("fedora", {}, "dnf debuginfo-install qemu-kvm-core-17:9.1.0-15.el9"),
        ("fedora", {"rpm -qf": "file /usr/bin/x is not owned by any package"}, symbols.BY_HAND),
        ("debian", {"dpkg-query -S": ""}, symbols.BY_HAND),
    ],
)
def test_the_command_is_for_the_very_package_that_has_the_binary(
    family: str, answers: dict[str, str], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(symbols, "_printed", lambda *words: (ANSWERS | answers)[" ".join(words[:2])])
    monkeypatch.setattr(symbols, "_is_installed", lambda _target: True)
    here = Distribution(name="", family=family)
    assert symbols._how_to_get_them(QEMU, here) == command


def test_a_qemu_that_was_upgraded_while_it_ran_is_not_given_the_new_ones_symbols() -> None:
    gone = msgspec.structs.replace(QEMU, exe_deleted=True)
    assert "apt install" not in symbols._how_to_get_them(gone, Distribution(name="", family="debian"))
    assert symbols._how_to_get_them(msgspec.structs.replace(QEMU, exe="/home/x/qemu"), HERE) == symbols.BY_HAND


@pytest.mark.parametrize(
    ("told", "result"),
    [
        ("GNU gdb (Debian 16.3-1) 16.3\npython 3 13\n", Result.OK),
        ("GNU gdb (Ubuntu 12.1-0ubuntu1~22.04.2) 12.1\npython 3 10\n", Result.OK),
        ("GNU gdb (GDB) Red Hat Enterprise Linux 14.2-4.el9\npython 3 9\n", Result.OK),
        ("GNU gdb (GDB) Red Hat Enterprise Linux 8.2-20.el8\npython 3 6\n", Result.NOTE),
        ("GNU gdb (GDB; SUSE Linux Enterprise 15) 14.2\n", Result.NOTE),  # without Python
        ("something else\n", Result.NOTE),
    ],
)
def test_a_gdb_is_judged_by_its_version_and_its_python(
    told: str, result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "_printed", lambda _words: told)
    assert programs._gdb(Distribution(name="", family="fedora")).result is result


def test_where_gdb_is_too_old_the_way_to_a_newer_one_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_printed", lambda _words: "GNU gdb (GDB) 8.2\npython 3 6\n")
    remedy = programs._gdb(Distribution(name="", family="fedora")).remedy
    assert "/usr/local/lib/gdb/bin/pip install gdb-for-pwndbg" in remedy
    assert remedy.endswith("/usr/local/bin/")  # a capture looks there first, whatever the caller's PATH


def test_yama_and_lockdown_are_told(tmp_path: Path) -> None:
    (tmp_path / kernel.YAMA).parent.mkdir(parents=True)
    (tmp_path / kernel.YAMA).write_text("3\n")
    (tmp_path / "sys/kernel/security").mkdir(parents=True)
    (tmp_path / "sys/kernel/security/lockdown").write_text("none [integrity] confidentiality\n")
    found = {check.name: check for check in kernel.kernel(tmp_path)}
    assert found["Yama"].result is Result.NOTE
    assert "restarts" in found["Yama"].found
    assert "integrity" in found["lockdown"].found
    assert found["BTF"].result is Result.NOTE
    assert found["kernel log"].result is Result.LACKS


def test_what_is_tried_on_is_no_child_of_ours_and_ends_with_the_try() -> None:
    with sleeping_process() as pid:
        status = Path(f"/proc/{pid}/status").read_text()
        assert f"PPid:\t{os.getpid()}\n" not in status
    lab.until("it has ended", lambda: not running(pid), seconds=5)


def test_what_is_tried_on_ends_when_we_are_killed() -> None:
    script = (
        "import os, signal\nfrom autopsy.doctor.own_process import sleeping_process\n"
        "with sleeping_process() as pid:\n    print(pid, flush=True)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    lab.until("it has ended", lambda: not running(int(done.stdout)), seconds=5)


def test_the_table_says_what_to_do_once_and_what_it_comes_to() -> None:
    vms = tuple(
        VmChecks(
            target=f"pid:{pid}", name="web\x1b[31m", pid=pid, checks=(note("symbols", "stripped", "apt install x"),)
        )
        for pid in (7, 8)
    )
    told = list(lines(CheckedHost(host=(ok("gdb", "16"), lacks("debugfs", "not mounted", "mount it")), vms=vms)))
    assert told[1].startswith("LACKS  debugfs")
    assert sum("apt install x" in line for line in told) == 1
    assert sum("as for pid:7" in line for line in told) == 1
    assert "\x1b" not in "".join(told)
    assert told[-1] == "A capture would leave out what is marked LACKS."
    assert list(lines(CheckedHost(host=(ok("gdb", "16"),), vms=())))[-1] == "A capture would be whole."


@pytest.mark.live
def test_root_is_told_what_works_here_and_what_a_vm_would_lack() -> None:
    lab.need_root()
    with lab.qemu("7.2", name="examined") as vm:
        done = doctor()
        assert vm.process.alive()
        told = json.loads(done.stdout)
        host = by_name(told["host"])
        (mine,) = [each for each in told["vms"] if each["pid"] == vm.pid]
    assert done.returncode == (0 if told["whole"] else 7)
    assert told["whole"] == all(
        check["result"] != "lacks"
        for check in (*told["host"], *(each for one in told["vms"] for each in one["checks"]))
    )
    assert host[snapshot.WITH_STOP]["result"] == "ok"
    assert host[snapshot.KERNEL_STACKS]["result"] == "ok"
    assert host["sandbox"]["result"] == "ok"
    assert "GNU gdb" in host["gdb"]["found"]
    assert host["room to work in"]["result"] == "ok"
    assert host["room in the store"]["result"] in {"ok", "note"}
    checks = by_name(mine["checks"])
    assert checks["freeze"]["result"] == "ok"
    assert checks["monitor"]["result"] == "ok"
    assert "build-id" in checks["symbols"]["found"]
    assert mine["name"] == "examined"


def test_root_without_its_capabilities_is_told_which_evidence_is_lost() -> None:
    lab.need_root()
    done = doctor("setpriv", "--bounding-set", "-sys_admin,-bpf,-perfmon,-syslog")
    host = by_name(json.loads(done.stdout)["host"])
    assert done.returncode == 7
    assert host[snapshot.WITHOUT_STOP]["result"] == "note"
    assert host[snapshot.WITH_STOP]["result"] == "ok"
    assert host[snapshot.KERNEL_STACKS]["result"] == "lacks"
    assert "CAP_SYS_ADMIN" in host[snapshot.KERNEL_STACKS]["remedy"]
    assert host["sandbox"]["result"] == "note"
    assert "no user of its own" in host["sandbox"]["found"]


def test_a_process_that_may_not_be_traced_is_told_with_the_reason() -> None:
    refused = snapshot._refused(snapshot.WITH_STOP, 1, PermissionError(1, "no"))
    assert isinstance(refused, Check)
    assert refused.result is Result.LACKS
