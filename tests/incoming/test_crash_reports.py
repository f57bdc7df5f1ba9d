"""What systemd-coredump and ABRT tell of a crash is read in every form that people copy it in."""

from __future__ import annotations

import json
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from autopsy.incoming.material import Material
from support.built import pastes
from support.built.imported import diagnosis_of
from support.built.pastes import DISPATCH, POLL
from tests.incoming.test_beside import PS, material

STACKS = """
Module libblkid.so.1 from deb util-linux-2.38.1-5.amd64
Stack trace of thread 830:
#0  0x00007f1b2c2a9e2c __pthread_kill_implementation (libc.so.6 + 0x8ae2c)
#1  0x00007f1b2c25afb2 raise (libc.so.6 + 0x3bfb2)
#2  0x000055d0a1b2c3d4 n/a (qemu-system-x86_64 (deleted) + 0x7c3d4)

Stack trace of thread 827:
#0  0x00007f1b2c31c81f ppoll (libc.so.6 + 0x10281f)
#1  0x000055d0a1b2c3d4 main_loop_wait (qemu-system-x86_64 + 0x7c3d4)
ELF object binary architecture: AMD x86-64
"""
DUMPED = f"Process 827 (qemu-system-x86) of user 64055 dumped core.\n{STACKS}"
READ = {830: ["__pthread_kill_implementation", "raise", ""], 827: ["ppoll", "main_loop_wait"]}
COMMAND = "/usr/bin/qemu-system-x86_64 -name guest=web1,debug-threads=on -m 1024"
INFO = f"""           PID: 827 (qemu-system-x86)
        Signal: 6 (ABRT)
  Command Line: {COMMAND}
       Storage: /var/lib/systemd/coredump/core.qemu-system-x86.64055.zst (present)
       Message: """ + DUMPED.replace("\n", "\n                ")
JOURNAL = "Nov 20 03:15:00 host1 systemd-coredump[9999]: [🡕] " + DUMPED.replace("\n", "\n" + 46 * " ")
SYSLOG = "Nov 20 03:15:00 host1 systemd-coredump[9999]: " + DUMPED.replace("\n", "#012") + "\n"
EXPORTED = json.dumps({"MESSAGE": DUMPED, "COREDUMP_CMDLINE": COMMAND, "PRIORITY": "2"}) + "\n"
AS_BYTES = json.dumps({"MESSAGE": list(DUMPED.encode()), "COREDUMP_CMDLINE": COMMAND}) + "\n"


def told(found: Material) -> dict[int, list[str]]:
    return {each.tid: [frame.function for frame in each.frames] for look in found.paste.looks for each in look.threads}


@pytest.mark.parametrize(
    "text",
    [INFO, JOURNAL, SYSLOG, EXPORTED, AS_BYTES],
    ids=["coredumpctl info", "journalctl", "/var/log/messages", "journalctl -o json", "a message that is no UTF-8"],
)
def test_a_dump_s_stacks_are_read_as(text: str, tmp_path: Path) -> None:
    found = material(tmp_path, text.encode())
    assert told(found) == READ
    assert "dumped core" in found.crash
    assert diagnosis_of(text, tmp_path / "said").signature == "qemu-crashed"


def test_the_dump_of_another_program_is_not_taken_for_qemu_s(tmp_path: Path) -> None:
    other = DUMPED.replace("827", "77").replace("830", "78").replace("qemu-system-x86)", "postgres)")
    found = material(tmp_path, f"{other}\n{DUMPED}\n{other}".encode())
    assert told(found) == READ
    alone = material(tmp_path, other.encode())
    assert (told(alone), alone.crash, alone.seen[0].of_use) == ({}, "", False)


def test_of_several_qemus_that_crashed_one_is_read_and_the_others_are_told(tmp_path: Path) -> None:
    other = DUMPED.replace("827", "77").replace("830", "78")
    found = material(tmp_path, f"{DUMPED}\n{other}".encode())
    assert told(found) == READ
    assert any("77" in note and "827" in note for note in found.notes)


def frame(name: str, file: str = "/usr/bin/qemu-kvm") -> dict[str, object]:
    told: dict[str, object] = {"address": 140103601808558, "build_id": "ab" * 20, "build_id_offset": 9390}
    return told | {"function_name": name, "file_name": file}


def core_backtrace(program: str = "/usr/bin/qemu-kvm") -> dict[str, object]:
    other = {"frames": [frame("ppoll", "/lib64/libc.so.6"), {"address": 94103601808561}, frame("main_loop_wait")]}
    crashed = {"crash_thread": True, "frames": [frame("raise", "/lib64/libc.so.6"), frame("bdrv_co_write_req_prepare")]}
    return {"signal": 6, "executable": program, "stacktrace": [other, crashed]}


BY_ABRT = {1: ["raise", "bdrv_co_write_req_prepare"], 2: ["ppoll", "", "main_loop_wait"]}


@pytest.mark.parametrize("indent", [None, 2])
def test_abrt_s_own_backtrace_is_read(indent: int | None, tmp_path: Path) -> None:
    found = material(tmp_path, json.dumps(core_backtrace(), indent=indent).encode())
    assert told(found) == BY_ABRT
    assert found.crash == "qemu-kvm killed by SIGABRT"
    assert "ABRT" in found.seen[0].what


def test_the_report_that_abrt_prints_is_read(tmp_path: Path) -> None:
    lines = "".join(f":{line}\n" for line in json.dumps(core_backtrace(), indent=2).splitlines())
    text = f"reason:         qemu-kvm killed by SIGABRT\ncmdline:        {COMMAND}\n\ncore_backtrace:\n{lines}"
    found = material(tmp_path, text.encode())
    assert told(found) == BY_ABRT
    assert [each.name for each in found.machines] == ["web1"]


def test_another_program_s_backtrace_is_not_taken(tmp_path: Path) -> None:
    found = material(tmp_path, json.dumps(core_backtrace("/usr/bin/sssd")).encode())
    assert (told(found), found.crash, found.seen[0].of_use) == ({}, "", False)


def test_what_a_bug_tracker_shows_of_abrt_s_backtrace_is_read(tmp_path: Path) -> None:
    text = """reason:         qemu-system-x86_64 killed by SIGABRT

Truncated backtrace:
Thread no. 1 (3 frames)
 #4 __pthread_kill_implementation at pthread_kill.c:44
 #6 raise at ../sysdeps/posix/raise.c:26
 #8 bdrv_co_write_req_prepare at ../block/io.c:1850

Comment #3 from somebody at example
"""
    found = material(tmp_path, text.encode())
    assert told(found) == {1: ["__pthread_kill_implementation", "raise", "bdrv_co_write_req_prepare"]}
    assert [each.line for look in found.paste.looks for each in look.threads[0].frames] == [44, 26, 1850]


def test_abrt_s_folder_is_read_and_its_fuller_backtrace_counts(tmp_path: Path) -> None:
    full = pastes.dump(("qemu-system-x86", (*POLL, "blk_drain", *DISPATCH)))
    files = {
        "core_backtrace": json.dumps(core_backtrace(), indent=4),
        "cmdline": COMMAND,
        "reason": "qemu-kvm killed by SIGSEGV",
        "maps": "55d0a1b2c000-55d0a1b2d000 r-xp 00000000 08:01 1 /usr/bin/qemu-kvm\n",
        "proc_pid_status": "Name:\tqemu-kvm\nPid:\t5000\n",
        "open_fds": "0:/dev/null\npos:\t0\nflags:\t0100002\n",
    }
    for more in ({}, {"backtrace": full}):
        packed = BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for name, text in (files | more).items():
                entry = tarfile.TarInfo(f"ccpp-2026-11-20-03:15:00-827/{name}")
                entry.size = len(text.encode())
                archive.addfile(entry, BytesIO(text.encode()))
        found = material(tmp_path, packed.getvalue())
        assert set(told(found)) == ({5000} if more else set(BY_ABRT))
        assert found.crash == "qemu-kvm killed by SIGSEGV"
        assert [each.name for each in found.machines] == ["web1"]


@pytest.mark.parametrize(
    "value",
    [
        {"name": "a-package", "version": "1.0", "dependencies": {}},
        {
            "executable": "/usr/bin/qemu-kvm",
            "stacktrace": [{"frames": [None, {"function_name": 7, "address": -1}, {}]}],
        },
        {"executable": "/usr/bin/qemu-kvm", "stacktrace": "none", "signal": 9999},
        {"MESSAGE": [1, 2, "x"]},
        {"MESSAGE": None, "COREDUMP_CMDLINE": 7},
        [[[]]],
    ],
)
def test_other_json_is_no_answer_of_a_monitor(value: object, tmp_path: Path) -> None:
    found = material(tmp_path, json.dumps(value, indent=2).encode(), json.dumps(value).encode(), PS.encode())
    assert not any("monitor" in each.what for each in found.seen)


def test_eu_stack_s_inlined_functions_and_source_lines_are_read(tmp_path: Path) -> None:
    text = """PID 15741 - process
TID 15741:
#0  0x00007ff9d8c5d7f6 __ppoll - /usr/lib64/libc.so.6
    ../sysdeps/unix/sysv/linux/ppoll.c:42:10
#1  0x000055e0d4f0a1c9 - 1 ppoll - /usr/bin/qemu-system-x86_64
#1  0x000055e0d4f0a1c9 qemu_poll_ns - /usr/bin/qemu-system-x86_64
#2  0x000055e0d4f07c65 main_loop_wait - /usr/bin/qemu-system-x86_64
eu-stack: dwfl_thread_getframes tid 15744 at 0x7ff9d8c5d7f6: no matching address range
TID 15744:
#0  0x00007ff9d8b5a7f6
"""
    assert told(material(tmp_path, text.encode())) == {
        15741: ["__ppoll", "ppoll", "qemu_poll_ns", "main_loop_wait"],
        15744: [""],
    }
