"""A target that means us harm: names, sockets and pidfiles that are not what they seem."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from autopsy.bundle.verify import verify
from support import lab
from support.surviving import _every_capture_ends, capture, is_untouched  # noqa: F401 - a fixture

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]

EVIL = "a\x1b]0;owned\x07\x1b[2J\u202egnp.\nb\r\x9b31m<script>alert(1)</script>{{7*7}}"


def said(*words: str | Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "autopsy", *map(str, words)],
        capture_output=True,
        check=False,
        timeout=90,
        env={**os.environ, "PYTHONPATH": str(lab.HOUSE)},
    )


def assert_safe_on_a_terminal(printed: bytes) -> None:
    text = printed.decode("utf-8", "strict")
    bad = {each for each in text if unicodedata.category(each) in {"Cc", "Cf"} and each != "\n"}
    assert not bad, f"{bad!r} in {text!r}"


def test_a_name_with_escapes_reaches_no_terminal_and_no_path(tmp_path: Path) -> None:
    with lab.qemu("7.2", name=EVIL.replace(",", ",,")) as machine:
        done = said("capture", f"pid:{machine.pid}", "--fast", "--out", tmp_path)
        assert done.returncode == 0, done.stderr
        assert_safe_on_a_terminal(done.stdout)
        assert_safe_on_a_terminal(done.stderr)
        listed = said("ps")
        assert_safe_on_a_terminal(listed.stdout)
    (bundle,) = tmp_path.glob("*.tar.zst")
    assert all(each.isascii() and each.isprintable() for each in bundle.name)
    assert verify(bundle).manifest.target.name
    for words in (("analyze", bundle), ("report", bundle, "--format", "md")):
        printed = said(*words).stdout
        assert_safe_on_a_terminal(printed)
        assert b"<script>alert" not in printed.replace(b"\\<script", b"")


@contextmanager
def pretending(folder: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a shell that calls itself QEMU and does nothing."""
    fake = folder / "qemu-system-x86_64"
    shutil.copyfile("/bin/sleep", fake)
    fake.chmod(0o755)
    process = subprocess.Popen(["qemu-system-x86_64", *words], executable=fake, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_process_that_only_calls_itself_qemu_is_told_and_not_harmed(tmp_path: Path) -> None:
    with pretending(tmp_path, "600") as process:
        done = capture(process.pid, tmp_path / "out", "--fast", "--budget", "20", "--then-kill")
        code = done.end(40)
        assert code in {0, 3, 5}, done.story
        assert process.poll() is None or code == 0
        if process.poll() is None:
            assert is_untouched(process.pid) == []


@pytest.mark.parametrize(
    "kind", ["fifo", "link to a fifo", "folder", "file", "link to nothing", "deaf socket", "device"]
)
def test_a_monitor_that_is_no_socket_is_refused_at_once(kind: str, short: Path) -> None:
    path = short / "m"
    held = None
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "link to a fifo":
            os.mkfifo(short / "pipe")
            path.symlink_to(short / "pipe")
        case "folder":
            path.mkdir()
        case "file":
            path.write_bytes(b"4242\n")
        case "link to nothing":
            path.symlink_to(short / "nothing")
        case "device":
            path.symlink_to("/dev/zero")
        case _:
            held = socket.socket(socket.AF_UNIX)
            held.bind(str(path))
    try:
        done = capture(f"qmp:{path}", short, "--fast", "--budget", "10")
        assert done.end(30) in {2, 3, 4}, done.story
        assert "Traceback" not in done.story
        assert not list(short.glob("*.tar.zst"))
    finally:
        if held is not None:
            held.close()


def test_a_stopped_impostor_holds_nothing_up(tmp_path: Path) -> None:
    with pretending(tmp_path, "600") as process:
        process.send_signal(signal.SIGSTOP)
        done = capture(process.pid, tmp_path / "out", "--fast", "--budget", "15")
        assert done.end(40) in {0, 3}, done.story
        assert Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        process.send_signal(signal.SIGCONT)
