"""What a user of the host can do to root's look at all VMs, and to the capture of another's VM: nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from autopsy.bundle import layout
from autopsy.bundle.reader import open_bundle
from autopsy.errors import NoSuchVm
from autopsy.target.platforms.platform import Roots
from autopsy.target.target import find_target
from support import lab, strangers

pytestmark = [pytest.mark.live, pytest.mark.timeout(200)]

# A process that is taken for a QEMU. What it waits in has a name of its own, which only its debug information tells.
SOURCE = """
#include <unistd.h>
const char banner[] __attribute__((used)) = "QEMU emulator version 7.2.15 (of a stranger)";
static int FUNCTION(int times) { for (;;) times += pause(); }
EXTRA
int main(int count, char **words) { (void)words; return FUNCTION(count); }
"""
SECRET = b"what only root may read"
BUILD_ID = "0x0123456789abcdef0123456789abcdef01234567"


def built(place: Path, function: str, extra: str = "") -> Path:
    folder = place / function
    folder.mkdir()
    source = folder / "it.c"
    source.write_text(SOURCE.replace("FUNCTION", function).replace("EXTRA", extra))
    binary = folder / "qemu-system-x86_64"
    build_id = f"-Wl,--build-id={BUILD_ID}"
    subprocess.run(["cc", "-g", "-O0", "-fno-inline", build_id, "-o", binary, source], check=True, timeout=60)
    folder.chmod(0o711)
    binary.chmod(0o755)
    return binary


@contextmanager
def running(*words: str | Path, stranger: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(words, preexec_fn=strangers.become if stranger else None)  # noqa: PLW1509 - this process has one thread
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def backtrace_of(pid: int, out: Path) -> str:
    words = [sys.executable, "-m", "autopsy", "capture", f"pid:{pid}", "--fast", "--out", str(out)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    (bundle,) = out.glob("*.tar.zst")
    return open_bundle(bundle).read(layout.evidence(layout.GDB_THREADS, layout.BACKTRACE)).decode()


def test_a_vm_that_bears_another_s_build_id_spoils_nothing_of_that_one_s_capture(tmp_path: Path) -> None:
    lab.need_root()
    with strangers.everybodys() as place:
        _spoils_nothing(place, tmp_path)


def _spoils_nothing(short: Path, tmp_path: Path) -> None:
    honest = built(short, "waits_honestly")
    liar = built(short, "lies", "".join(f"int more{number}(void) {{ return {number}; }}\n" for number in range(200)))
    with running(liar, "-name", "evil", stranger=True) as evil:
        assert "lies" in backtrace_of(evil.pid, tmp_path / "evil")
    with running(honest, "-name", "honest1") as victim:
        found = backtrace_of(victim.pid, tmp_path / "victim")
    assert "waits_honestly" in found
    assert "lies" not in found


def test_ps_opens_no_device_and_no_pipe_that_a_user_names_like_a_managers_file() -> None:
    lab.need_root()
    with strangers.everybodys() as place:
        _opens_nothing(place)


def _opens_nothing(short: Path) -> None:
    binary = built(short, "waits_in_a_namespace")
    script = (
        "mount -t tmpfs none /run && mkdir -p /run/libvirt/qemu && ln -s /dev/ptmx /run/libvirt/qemu/x.pid"
        f" && mkfifo /run/libvirt/qemu/y.pid && exec {binary} -name x"
    )
    trace = short / "trace"
    with running("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, stranger=True) as process:
        lab.until("it is at work", lambda: os.readlink(f"/proc/{process.pid}/exe") == str(binary))
        traced = ["strace", "-f", "-qq", "-e", "trace=open,openat,openat2", "-o", str(trace)]
        done = subprocess.run([*traced, sys.executable, "-m", "autopsy", "ps"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    named = [
        line for line in trace.read_text().splitlines() if any(each in line for each in ("x.pid", "y.pid", "ptmx"))
    ]
    assert named  # it did come by
    assert [line for line in named if "O_PATH" not in line] == []


def test_a_user_who_makes_a_container_of_his_own_has_no_file_of_root_s_taken_for_its_manager_s(tmp_path: Path) -> None:
    """In his own view of the file system he lays libvirt's files, as links to what he may not read, and over them."""
    lab.need_root()
    with strangers.everybodys(0o711) as short:
        secret = short / "secret"
        secret.write_bytes(SECRET)
        secret.chmod(0o600)
        binary = built(short, "waits_in_a_container")
        script = (
            "mount -t tmpfs none /run && mount -t tmpfs none /var/log"
            " && mkdir -p /run/libvirt/qemu/run /var/log/libvirt/qemu && echo $$ >/run/libvirt/qemu/evil.pid"
            f" && ln -s {secret} /run/libvirt/qemu/evil.xml && : >/run/libvirt/qemu/run/evil.xml"
            f" && mount --bind {secret} /run/libvirt/qemu/run/evil.xml"
            f" && ln -s {secret} /var/log/libvirt/qemu/evil.log && exec {binary} -name guest=evil"
        )
        unshared = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script)
        with running(*unshared, stranger=True) as process:
            lab.until("it is at work", lambda: os.readlink(f"/proc/{process.pid}/exe") == str(binary))
            words = [sys.executable, "-m", "autopsy", "capture", f"pid:{process.pid}", "--fast", "--out", str(tmp_path)]
            done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    (bundle,) = tmp_path.glob("*.tar.zst")
    held = open_bundle(bundle)
    assert held.manifest.target.manager == "libvirt"  # it does claim its own process
    assert [name for name, data in held.files.items() if SECRET in data] == []


def test_a_user_who_comes_by_the_number_of_a_vm_that_has_ended_is_not_taken_for_it(tmp_path: Path) -> None:
    """Its manager's pidfile still tells the number, and what the VM was started with is known to everybody."""
    lab.need_root()
    folder = tmp_path / "qemu-server"
    folder.mkdir()
    pidfile = folder / "102.pid"
    with strangers.everybodys(0o711) as short:
        binary = built(short, "waits_for_a_number")
        words = ["/usr/bin/kvm", "-id", "102", "-name", "web,debug-threads=on", "-pidfile", str(pidfile)]
        for stranger in (False, True):
            become = strangers.become if stranger else None
            with subprocess.Popen(words, executable=binary, preexec_fn=become) as process:  # noqa: PLW1509 - this process has one thread
                try:
                    lab.until("it is at work", lambda pid=process.pid: os.readlink(f"/proc/{pid}/exe") == str(binary))
                    pidfile.write_text(f"{process.pid}\n")
                    if stranger:
                        with pytest.raises(NoSuchVm, match="is not"):
                            find_target("pve:102", Roots(run=tmp_path))
                    else:
                        held = find_target("pve:102", Roots(run=tmp_path))
                        assert held.record.manager == "proxmox"
                        os.close(held.pidfd)
                finally:
                    process.kill()
