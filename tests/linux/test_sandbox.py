"""Each thing that the sandbox refuses, to gdb's own Python and to a child that plays a gdb that was taken over."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autopsy.linux.confine import confined, landlock, sandbox, seccomp
from autopsy.linux.confine.confined import AnswerPipe, Died, TooSlow, WorkRaised
from autopsy.linux.confine.sandbox import UIDS, Confined, Sandbox

SECONDS = 20.0
IS_ROOT = os.geteuid() == 0
CALL = "import ctypes; libc = ctypes.CDLL(None, use_errno=True)\n"


def called(expression: str) -> str:
    """Return a program that makes a system call, and raises what the kernel says to it."""
    return f"{CALL}if libc.{expression} < 0: raise OSError(ctypes.get_errno(), '')"


# What a taken-over process tries; each must end in OSError, whose numbers may be these.
REFUSED = {
    "/etc/shadow": "open('/etc/shadow')",
    "/etc/passwd": "open('/etc/passwd')",
    "its own /proc": "open('/proc/self/maps')",
    "another's /proc": "open('/proc/{outside}/environ')",
    "a listing of /proc": "import os; os.listdir('/proc')",
    "another uid's file": "open('{secret}')",
    "a world-readable file elsewhere": "open('{public}')",
    "to make a file elsewhere": "open('/var/tmp/autopsy-escaped', 'w')",
    "to run what it wrote": "import os; open('x', 'w').write('#!/bin/sh'); os.chmod('x', 493); os.execv('./x', ['x'])",
    "an internet socket": "import socket; socket.socket()",
    "a UNIX socket": "import socket; socket.socket(socket.AF_UNIX)",
    "a netlink socket": "import socket; socket.socket(socket.AF_NETLINK)",
    "to signal the outside": "import os; os.kill({outside}, 0)",
    "to trace": called("ptrace(16, {outside}, 0, 0)"),
    "to read another's memory": called("process_vm_readv({outside}, 0, 0, 0, 0, 0)"),
    "to mount": called("mount(b'none', b'.', b'tmpfs', 0, 0)"),
    "a namespace of its own": called("unshare(0x10000000)"),
    "a namespace by clone()": called("syscall(56, 0x10000011, 0, 0, 0, 0)"),
    "clone3(), whose flags no filter sees": called("syscall(435, 0, 0)"),
    "bpf": called("syscall(321, 0, 0, 0)"),
    "io_uring": called("syscall(425, 1, 0)"),
    "perf": called("syscall(298, 0, 0, -1, -1, 0)"),
    "keys": called("syscall(248, b'user', b'x', b'x', 1, -3)"),
    "a session of its own": "import os; os.setsid()",
    "to type into a terminal": called("ioctl(0, 0x5412, b'x')"),
    "to be root again": called("setresuid(0, 0, 0)"),
    "to change what a file is": "import os; os.chmod('{own}', 0o777)",
    "to give a file away": "import os; os.chown('{own}', -1, -1)",
    "to date a file": "import os; os.utime('{own}')",
    "to mark a file": "import os; os.setxattr('{own}', 'user.x', b'')",
    "to cut a file short": "import os; os.truncate('{own}', 0)",
    "a pair of sockets": "import socket; socket.socketpair()",
    "to have a pipe signal another": "import fcntl, os; fcntl.fcntl(os.pipe()[0], 8, {outside})",
    "to bound another": "import resource; resource.prlimit({outside}, resource.RLIMIT_CPU)",
    "to slow another": "import os; os.setpriority(os.PRIO_PROCESS, {outside}, 19)",
    "to move another": "import os; os.sched_setaffinity({outside}, [0])",
    "a device": "import os; os.mknod('dev', 0o20600, os.makedev(1, 1))",
}
ALLOWED_NUMBERS = {errno.EPERM, errno.EACCES, errno.ESRCH, errno.ENOSYS, errno.ENOENT}
NUMBERED_BY_X86 = {"a namespace by clone()", "bpf", "io_uring", "perf", "keys"}
FOR_ROOT_ALONE = {"to be root again", "a device"}  # nobody else could do it anyway


@pytest.fixture
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="at-", dir="/var/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def attempts(tmp_path: Path, short: Path) -> Iterator[Callable[[str], str]]:
    """Return a program with a living process of the outside and files of other users filled in."""
    secret, public, own = tmp_path / "secret", short / "public", short / "own"
    own.write_text("of whoever looks")
    secret.write_text("another's")
    secret.chmod(0o600)
    public.write_text("anybody's")
    public.chmod(0o644)
    outside = subprocess.Popen(["sleep", "60"])
    names = {"{outside}": str(outside.pid), "{secret}": str(secret), "{public}": str(public), "{own}": str(own)}

    def filled(program: str) -> str:
        for name, value in names.items():
            program = program.replace(name, value)
        return program

    try:
        yield filled
    finally:
        outside.kill()
        outside.wait()


def in_box(
    work: Callable[[Confined, AnswerPipe], bytes], scratch: Path, *, seconds: float = SECONDS, **limits: int
) -> bytes:
    return confined.run(work, Sandbox(scratch=scratch, **limits), seconds=seconds, hear=lambda _, data: data)


def tried(program: str) -> str:
    return f"""
try:
    exec({program!r})
except OSError as error:
    print("refused", error.errno)
except MemoryError:
    print("no memory")
else:
    print("allowed")
"""


def for_this_machine(name: str) -> None:
    if name in FOR_ROOT_ALONE and not IS_ROOT:
        pytest.skip("for root alone")
    if os.uname().machine != "x86_64" and name in NUMBERED_BY_X86:
        pytest.skip("its number is x86-64's")
    if not landlock.version() or not seccomp.knows_this_machine():
        pytest.skip("this kernel lacks Landlock, or its architecture a filter")


@pytest.mark.parametrize("name", REFUSED)
def test_a_child_that_was_taken_over_is_refused(name: str, scratch: Path, attempts: Callable[[str], str]) -> None:
    for_this_machine(name)

    def play(_box: Confined, _line: AnswerPipe) -> bytes:
        try:
            exec(attempts(REFUSED[name]))  # noqa: S102 - it is what is tried
        except OSError as error:
            return f"refused {error.errno}".encode()
        return b"allowed"

    word, _, number = in_box(play, scratch).decode().partition(" ")
    assert word == "refused"
    assert int(number) in ALLOWED_NUMBERS


@pytest.mark.parametrize("name", REFUSED)
def test_gdbs_own_python_is_refused(name: str, scratch: Path, attempts: Callable[[str], str]) -> None:
    for_this_machine(name)
    script = scratch / "try.py"
    script.write_text(tried(attempts(REFUSED[name])))
    script.chmod(0o644)

    def play(box: Confined, _line: AnswerPipe) -> bytes:
        done = subprocess.run(
            ["gdb", "-nx", "-q", "-batch", "-x", str(box.given / "try.py")],
            capture_output=True,
            check=False,
            preexec_fn=sandbox.send_no_signal,
        )
        return done.stdout + done.stderr

    printed = in_box(play, scratch).decode()
    assert printed.startswith("refused "), printed
    assert int(printed.split()[1]) in ALLOWED_NUMBERS


def test_it_gets_no_more_memory_than_allowed(scratch: Path) -> None:
    def play(_box: Confined, _line: AnswerPipe) -> bytes:
        try:
            return b"%d" % len(bytearray(1 << 30))
        except MemoryError:
            return b"no memory"

    assert in_box(play, scratch, memory=512 << 20) == b"no memory"


def test_it_cannot_fill_a_disk(scratch: Path) -> None:
    def play(_box: Confined, _line: AnswerPipe) -> bytes:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with open("big", "wb", buffering=0) as stream:
            stream.write(bytes(1 << 20))
            stream.write(bytes(1))
        return b"written"

    with pytest.raises(WorkRaised, match="File too large"):
        in_box(play, scratch, file_size=1 << 20)


def test_it_reads_the_systems_libraries_and_writes_its_scratch(scratch: Path) -> None:
    def play(box: Confined, line: AnswerPipe) -> bytes:
        (box.scratch / "made").write_bytes(Path("/usr/bin/env").read_bytes()[:4])
        return (box.scratch / "made").read_bytes() + line.ask("more", b" and an answer")

    assert in_box(play, scratch) == b"\x7fELF and an answer"
    assert (scratch / "made").exists() is not IS_ROOT, "root's host keeps what a stranger's process wrote"


def test_it_holds_no_descriptor_but_its_own(scratch: Path) -> None:
    with open("/proc/self/mem", "rb") as memory:

        def play(_box: Confined, _line: AnswerPipe) -> bytes:
            return os.read(memory.fileno(), 1) or b"nothing"

        assert in_box(play, scratch) == b"nothing"


def test_what_it_raises_is_told(scratch: Path) -> None:
    def play(_box: Confined, _line: AnswerPipe) -> bytes:
        raise KeyError("this")

    with pytest.raises(WorkRaised) as raised:
        in_box(play, scratch)
    assert (raised.value.kind, raised.value.data) == ("KeyError", b"'this'")


def test_its_death_is_told_by_its_signal(scratch: Path) -> None:
    def play(_box: Confined, _line: AnswerPipe) -> bytes:
        return os.kill(os.getpid(), signal.SIGSEGV) or memory_fault()

    def memory_fault() -> bytes:
        import ctypes  # noqa: PLC0415 - only to fall

        return ctypes.string_at(0)

    with pytest.raises(Died, match="it died: SIGSEGV"):
        in_box(play, scratch)


def test_what_no_child_of_ours_would_say_ends_it(scratch: Path) -> None:
    def play(_box: Confined, line: AnswerPipe) -> bytes:
        os.write(line.told, (4).to_bytes(4, "little") + b"\xff\xff\xff\xff")
        time.sleep(SECONDS)
        return b""

    with pytest.raises(Died, match="no process of ours"):
        in_box(play, scratch)


def test_one_that_promises_too_much_is_not_waited_for(scratch: Path) -> None:
    def play(_box: Confined, line: AnswerPipe) -> bytes:
        os.write(line.told, b"\xff\xff\xff\xff")
        time.sleep(SECONDS)
        return b""

    with pytest.raises(Died, match="more than it may"):
        in_box(play, scratch)


def test_neither_it_nor_what_it_started_outlives_its_time(scratch: Path) -> None:
    if not IS_ROOT:
        pytest.skip("for a namespace of processes")

    def play(_box: Confined, _line: AnswerPipe) -> bytes:
        subprocess.Popen(["sleep", "3217"], process_group=0)
        time.sleep(SECONDS)
        return b""

    with pytest.raises(TooSlow):
        in_box(play, scratch, seconds=1.0)
    time.sleep(0.1)
    assert b"3217" not in subprocess.run(["ps", "-eo", "args"], capture_output=True, check=True).stdout


def test_without_a_user_of_its_own_root_keeps_no_right(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not IS_ROOT:
        pytest.skip("for root alone")
    monkeypatch.setattr(sandbox, "INSIDE", Path("/nonexistent"))

    def play(box: Confined, _line: AnswerPipe) -> bytes:
        with pytest.raises(PermissionError):
            os.setuid(0 if os.geteuid() else UIDS[0])
        with pytest.raises(PermissionError):
            open("/etc/shadow", "rb").close()
        return box.lacking[0].encode()

    assert b"no user of its own: mount: No such file" in in_box(play, scratch)


def test_where_landlock_is_missing_the_rest_holds_and_it_is_said(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landlock, "version", lambda: 0)

    def play(box: Confined, _line: AnswerPipe) -> bytes:
        with pytest.raises(PermissionError):
            __import__("socket").socket()
        return "; ".join(box.lacking).encode()

    assert in_box(play, scratch) == b"this kernel has no Landlock (5.13)"


def test_the_parent_starts_its_next_child_where_it_is_itself(scratch: Path) -> None:
    in_box(lambda _box, _line: b"", scratch)
    told = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    assert int(told.stdout) > 1
    assert os.readlink("/proc/self/ns/pid_for_children") == os.readlink("/proc/self/ns/pid")
