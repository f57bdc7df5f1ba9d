"""What stands beside a backtrace is found by its content, and only what concerns one VM is taken."""

from __future__ import annotations

import base64
import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
import zstandard

from autopsy.bundle import layout
from autopsy.facts.cite import Known
from autopsy.incoming.material import Material
from autopsy.incoming.reading import read_evidence
from support.built import pastes
from support.built.imported import NOWHERE, diagnosis_of, facts_of
from support.built.pastes import DISPATCH, POLL
from tests.incoming.test_core_file import made

QEMU = "/usr/bin/qemu-system-x86_64"
WEB = f"{QEMU} -name guest=web1,debug-threads=on -drive file=/srv/web1.raw,if=none,id=d0"
DB = f"{QEMU} -name guest=db1 -m 2048 -drive file=/srv/db1.raw,if=none,id=d0"
PS = f"""USER         PID %CPU %MEM    VSZ   RSS TTY      STAT START   TIME COMMAND
root           1  0.0  0.1 168000 11000 ?        Ss   Nov20   0:10 /sbin/init
qemu        5000 12.0  8.1 168000 11000 ?        Sl   Nov20  99:10 {WEB}
qemu        6000 12.0  8.1 168000 11000 ?        Sl   Nov20  99:10 {DB}
"""
LIBVIRT = r"""2026-11-20 03:15:00.000+0000: starting up libvirt version: 9.0.0, qemu version: 7.2.0
LC_ALL=C \
HOME=/var/lib/libvirt/qemu/domain-1-web1 \
/usr/bin/qemu-system-x86_64 \
-name guest=web1,debug-threads=on \
-m 1024 \
-msg timestamp=on
2026-11-29 10:00:00.000+0000: qemu-system-x86_64: terminating on signal 15 from pid 1 (/sbin/init)
"""
DMESG = """[12345.000000] INFO: task CPU 0/KVM:5001 blocked for more than 120 seconds.
[12345.000001]       Not tainted 6.1.0-1-amd64 #1
[12345.000002] "echo 0 > /proc/sys/kernel/hung_task_timeout_secs" disables this message.
[12345.000003] task:CPU 0/KVM       state:D stack:0     pid:5001  tgid:5000  ppid:1      flags:0x00000002
[12345.000004] Call Trace:
[12345.000005]  <TASK>
[12345.000006]  __schedule+0x34d/0x9e0
[12345.000007]  ? guessed_by_the_unwinder+0x1/0x2
[12345.000008]  schedule+0x5a/0xd0
[12345.000009]  rpc_wait_bit_killable+0x11/0x70 [sunrpc]
[12345.000010]  nfs4_do_call_sync+0x6e/0xb0 [nfsv4]
[12345.000011]  </TASK>
[12346.000000] INFO: task CPU 0/KVM:5001 is blocked on a mutex likely owned by task kworker/3:1:77.
[12347.000000] INFO: task postgres:900 blocked for more than 120 seconds.
[12347.000001] Call Trace:
[12347.000002]  __schedule+0x34d/0x9e0
[12348.000000] INFO: task worker:6009 blocked for more than 120 seconds.
[12348.000003] task:worker          state:D stack:0     pid:6009  tgid:6000  ppid:1      flags:0x00000002
[12348.000004] Call Trace:
[12348.000006]  __schedule+0x34d/0x9e0
[12348.000006]  io_schedule+0x34d/0x9e0
[12349.000000] Future hung task reports are suppressed, see sysctl kernel.hung_task_warnings
"""


def material(folder: Path, *contents: bytes, name: str = "") -> Material:
    streams = []
    for number, content in enumerate(contents):
        path = folder / f"given-{number}"
        path.write_bytes(content)
        streams.append(path.open("rb"))
    try:
        return read_evidence([each.fileno() for each in streams], NOWHERE, name)
    finally:
        for each in streams:
            each.close()


@pytest.mark.parametrize(
    "text", [WEB, f"5000 ?  Sl  0:01 {WEB}", LIBVIRT, f"           ├─5000 {WEB}", WEB.replace(" ", "\0") + "\0"]
)
def test_a_command_line_is_found_wherever_it_was_copied_from(text: str, tmp_path: Path) -> None:
    found = material(tmp_path, text.encode())
    assert [each.name for each in found.machines] == ["web1"]
    assert found.files[layout.evidence(layout.WITNESS, layout.CMDLINE)].startswith(
        QEMU.encode() + b"\0-name\0guest=web1"
    )


def test_the_vm_of_the_backtrace_is_chosen_among_many(tmp_path: Path) -> None:
    dump = pastes.dump(("qemu-system-x86", (*POLL, "blk_drain", *DISPATCH)))  # its thread is 5000
    found = material(tmp_path, PS.encode(), dump.encode())
    assert [each.name for each in found.machines] == ["web1"]
    assert not any(b"db1" in data for data in found.files.values())


def test_the_vm_that_is_named_is_chosen_and_without_a_name_none_is(tmp_path: Path) -> None:
    assert [each.name for each in material(tmp_path, PS.encode(), name="db1").machines] == ["db1"]
    among_many = material(tmp_path, PS.encode())
    assert among_many.machines == ()
    assert any("--name" in note for note in among_many.notes)
    assert not any(b"db1" in data or b"web1" in data for data in among_many.files.values())


def test_the_disks_of_the_command_line_are_told(tmp_path: Path) -> None:
    dump = pastes.dump(("qemu-system-x86", (*POLL, "blk_drain", *DISPATCH)))
    facts = facts_of(f"{PS}\n{dump}", tmp_path)
    assert facts.vm.name == "web1"
    assert isinstance(facts.vm.arguments, Known)


def test_a_hung_task_of_the_kernel_log_tells_the_host(tmp_path: Path) -> None:
    found = diagnosis_of(DMESG, tmp_path)
    assert found.where in {"host", "peer"}
    assert found.confidence == "consistent"


def test_the_hung_tasks_of_others_are_left_out(tmp_path: Path) -> None:
    dump = pastes.dump(("CPU 0/KVM", ("ioctl", "kvm_cpu_exec")), ("qemu-system-x86", (*POLL, "blk_drain", *DISPATCH)))
    found = material(tmp_path, DMESG.encode(), dump.encode())
    tasks = found.files[layout.evidence(layout.WITNESS, layout.TASKS)].decode()
    assert "task/5001/stack" in tasks
    assert "nfs4_do_call_sync" in tasks
    assert "guessed_by_the_unwinder" not in tasks
    assert "6009" not in tasks
    assert "postgres" not in tasks
    assert any("suppressed" not in note and "stopped to report" in note for note in found.notes)
    assert any("likely owned by task kworker" in note for note in found.notes)


def test_answers_of_the_monitor_are_known_by_their_shape(tmp_path: Path) -> None:
    status = json.dumps({"return": {"status": "io-error", "running": False}, "id": "libvirt-7"}, indent=2)
    found = diagnosis_of(
        f'virsh # qemu-monitor-command web1 --pretty \'{{"execute":"query-status"}}\'\n{status}\n', tmp_path
    )
    assert found.where == "vm-state"
    assert diagnosis_of("(qemu) info status\nVM status: paused (io-error)\n", tmp_path / "hmp").where == "vm-state"


def test_a_report_of_a_host_is_read_by_content_whatever_its_files_are_called(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as archive:
        for name, data in (("sos/a", PS), ("sos/b/c", DMESG), ("sos/passwd", "root:x:0:0"), ("sos/d", LIBVIRT)):
            entry = tarfile.TarInfo(name)
            entry.size = len(data.encode())
            archive.addfile(entry, io.BytesIO(data.encode()))
    found = material(tmp_path, packed.getvalue(), name="web1")
    assert found.seen[0].of_use
    assert [each.pid for each in found.machines] == [5000]
    assert b"nfs4_do_call_sync" in found.files[layout.evidence(layout.WITNESS, layout.TASKS)]
    assert not any(b"passwd" in data or b"root:x" in data for data in found.files.values())


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_a_compressed_backtrace_is_read(pack: object, tmp_path: Path) -> None:
    dump = pastes.dump(("qemu-system-x86", (*POLL, "blk_drain", *DISPATCH))).encode()
    assert material(tmp_path, pack(dump)).paste.frames > 5  # type: ignore[operator]  # one of the two above


def test_what_ubuntu_s_crash_file_holds_is_unpacked(tmp_path: Path) -> None:
    dump = pastes.dump(("qemu-system-x86", (*POLL, "blk_drain", *DISPATCH))).encode()
    whole = gzip.compress(dump)
    lines = b"".join(b" " + base64.b64encode(whole[at : at + 100]) + b"\n" for at in range(0, len(whole), 100))
    crash = b"ProblemType: Crash\nArchitecture: amd64\nCoreDump: base64\n" + lines + b"CrashCounter: 1\n"
    assert material(tmp_path, crash).paste.frames > 5


def test_of_ubuntu_s_crash_file_the_command_line_is_read_and_a_core_that_comes_late(tmp_path: Path) -> None:
    core = made(tmp_path / "core", 4096, signal=6).read_bytes()
    whole = gzip.compress(core)
    coded = b"".join(b" " + base64.b64encode(whole[at : at + 100]) + b"\n" for at in range(0, len(whole), 100))
    maps = b" 55d0a1b2c000-55d0a1b2d000 r-xp 00000000 08:01 1 /usr/bin/qemu-system-x86_64\n" * 2_000
    said = b"ProblemType: Crash\nProcCmdline: " + WEB.encode() + b"\nProcMaps:\n" + maps
    (tmp_path / "given.crash").write_bytes(said + b"CoreDump: base64\n" + coded)
    with (tmp_path / "given.crash").open("rb") as file, (tmp_path / "taken").open("w+b") as core_to:
        found = read_evidence([file.fileno()], core_to.fileno())
    assert found.core is not None
    assert found.crash == "SIGABRT in thread 4242"
    assert [each.name for each in found.machines] == ["web1"]
