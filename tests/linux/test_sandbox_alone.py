"""What a sandbox of root's has for itself alone, and what an ordinary user's keeps from what that user owns."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autopsy.linux.child import in_child
from autopsy.linux.confine import confined, landlock, sandbox, seccomp
from autopsy.linux.confine.confined import AnswerPipe, WorkRaised
from autopsy.linux.confine.sandbox import UIDS, Confined, Sandbox

SECONDS = 20.0
SOMEBODY = 12345
IS_ROOT = os.geteuid() == 0


@pytest.fixture
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="at-", dir="/var/tmp") as folder:
        yield Path(folder)


def in_box(work: Callable[[Confined, AnswerPipe], bytes], scratch: Path) -> bytes:
    return confined.run(work, Sandbox(scratch=scratch), seconds=SECONDS, hear=lambda _, data: data)


def test_it_cannot_fill_the_hosts_memory_with_files(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not IS_ROOT:
        pytest.skip("for a folder in memory")
    monkeypatch.setattr(sandbox, "ROOM", 1 << 20)

    def play(box: Confined, _line: AnswerPipe) -> bytes:
        for number in range(32):
            (box.scratch / str(number)).write_bytes(bytes(1 << 16))
        return b"written"

    with pytest.raises(WorkRaised, match="No space left"):
        in_box(play, scratch)


def test_it_cannot_start_processes_without_end_and_goes_first_where_memory_is_used_up(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not IS_ROOT:
        pytest.skip("an ordinary user's bound is the user's own")
    monkeypatch.setattr(sandbox, "MOST_PROCESSES", 8)
    with open("/proc/self/oom_score_adj") as ours:
        before = ours.read()
    looked_at: list[str] = []

    def play(_box: Confined, line: AnswerPipe) -> bytes:
        line.ask("look")
        for number in range(64):
            try:
                if os.fork() == 0:
                    time.sleep(SECONDS)
            except BlockingIOError:
                return b"%d" % number
        return b"64"

    def look(_name: str, _data: bytes) -> bytes:
        with open(f"/proc/self/task/{os.getpid()}/children") as children:
            looked_at.extend(Path(f"/proc/{pid}/oom_score_adj").read_text() for pid in children.read().split())
        return b""

    started = confined.run(play, Sandbox(scratch=scratch), seconds=SECONDS, hear=look)
    assert int(started) < 8 + (os.cpu_count() or 1)
    assert "1000\n" in looked_at
    with open("/proc/self/oom_score_adj") as ours:
        assert ours.read() == before


def test_what_it_is_given_it_cannot_change_and_what_it_writes_nobody_finds(scratch: Path) -> None:
    if not IS_ROOT:
        pytest.skip("for a view of its own")
    (scratch / "laid").write_bytes(b"root's")
    (scratch / "laid").chmod(0o666)

    def play(box: Confined, _line: AnswerPipe) -> bytes:
        for change in (
            lambda: (box.given / "laid").write_bytes(b"mine"),
            (box.given / "laid").unlink,
            lambda: (box.given / "files").symlink_to("/etc"),
        ):
            with pytest.raises(OSError, match=r"Read-only|denied"):
                change()
        (box.scratch / "files").symlink_to("/etc")
        return (box.given / "laid").read_bytes()

    assert in_box(play, scratch) == b"root's"
    assert [each.name for each in scratch.iterdir()] == ["laid"]
    assert (scratch / "laid").read_bytes() == b"root's"


def test_two_at_once_are_two_users(tmp_path: Path) -> None:
    """Without Landlock nothing else would keep one examination from the memory that another was given."""
    if not IS_ROOT:
        pytest.skip("an ordinary user has one")
    boxes = [tmp_path / str(number) for number in range(4)]
    for each in boxes:
        each.mkdir(mode=0o700)
    users = {in_box(lambda _box, _line: str(os.getresuid()).encode(), each) for each in boxes}
    assert len(users) > 1
    assert all(int(user.split(b",")[1]) in UIDS for user in users)


def as_somebody(work: Callable[[], bytes]) -> bytes:
    """Run `work` as an ordinary user who owns files; one that is there already stays who it is."""

    def become() -> bytes:
        if IS_ROOT:
            os.setgroups([])
            os.setresgid(SOMEBODY, SOMEBODY, SOMEBODY)
            os.setresuid(SOMEBODY, SOMEBODY, SOMEBODY)
        return work()

    return in_child(become, SECONDS)


@pytest.mark.parametrize("abi", [1, 9])
def test_an_ordinary_users_own_files_and_processes_stay_as_they_are(
    abi: int, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Landlock asks nothing of chmod(2) and the like, nor, at first, of what cuts a file: whoever owns it may."""
    if not landlock.version() or not seccomp.knows_this_machine():
        pytest.skip("this kernel lacks Landlock, or its architecture a filter")
    abi = min(abi, landlock.version())
    monkeypatch.setattr(landlock, "version", lambda: abi)
    own, given = scratch / "own", scratch / "given"
    (scratch / "box").mkdir()
    for path in (own, given):
        path.write_text("mine")
    for path in (scratch, own, given, scratch / "box"):
        if IS_ROOT:
            os.chown(path, SOMEBODY, SOMEBODY)
    attempts: dict[str, Callable[[int], object]] = {
        "chmod": lambda _: os.chmod(own, 0o777),  # noqa: S103 - that is what is tried
        "fchmod": lambda _: os.fchmod(os.open(given, os.O_RDONLY), 0o777),
        "utime": lambda _: os.utime(own, (0, 0)),
        "setxattr": lambda _: os.setxattr(given, "user.x", b"1"),
        "truncate": lambda _: os.truncate(own, 0),
        "open": lambda _: os.open(given, os.O_RDONLY | os.O_TRUNC),
        "prlimit": lambda outside: resource.prlimit(outside, resource.RLIMIT_CPU, (0, 0)),
        "affinity": lambda outside: os.sched_setaffinity(outside, [0]),
        "own": lambda outside: fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, outside),
    }

    def tried() -> bytes:
        outside = os.fork()
        if outside == 0:
            time.sleep(SECONDS)
            os._exit(0)

        def play(_box: Confined, _line: AnswerPipe) -> bytes:
            came_through = []
            for name, attempt in attempts.items():
                with contextlib.suppress(OSError):
                    attempt(outside)
                    came_through.append(name)
            return " ".join(came_through).encode()

        try:
            box = Sandbox(scratch=scratch / "box", readable=(given,))
            return confined.run(play, box, seconds=SECONDS, hear=lambda _, data: data)
        finally:
            os.kill(outside, signal.SIGKILL)
            os.waitpid(outside, 0)

    assert as_somebody(tried) == b""
    assert (own.read_text(), given.read_text()) == ("mine", "mine")


def test_what_each_sandbox_needs_is_made_once_before_the_children_that_need_it(scratch: Path) -> None:
    if not seccomp.knows_this_machine():
        pytest.skip("its architecture has no filter")
    seccomp.program.cache_clear()
    sandbox.warm()
    made = seccomp.program.cache_info().misses

    def play(_box: Confined, _line: AnswerPipe) -> bytes:
        sandbox.send_no_signal()
        return b"%d" % (seccomp.program.cache_info().misses - made)

    assert in_box(play, scratch) == b"0"
