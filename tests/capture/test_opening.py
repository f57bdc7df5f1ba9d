"""What a target names is opened only if it is a regular file that the target itself may read."""

from __future__ import annotations

import os
import signal
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from autopsy.bundle import layout
from autopsy.bundle.sections import Section
from autopsy.capture import aftermath
from autopsy.capture.gdb import step as gdb
from autopsy.capture.host import vm_files
from autopsy.capture.proc import images
from autopsy.capture.reading.procfs import ProcDirectory
from autopsy.capture.reading.reader import ReadFailures, SectionRead, Truncated, Unreadable, take
from autopsy.capture.step import Deadline
from autopsy.files.plain import NotPlain
from autopsy.linux.files import open_below, read_plain, read_regular
from support import strangers

SECRET = b"root's own\n"
TRIES = 2000


@contextmanager
def stranger_with(stderr: int) -> Iterator[ProcDirectory]:
    """Run another user's process that has such a descriptor as its stderr."""
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(stderr, 2)
        strangers.become()
        os.write(told, b"x")
        signal.pause()
        os._exit(0)
    os.read(ready, 1)
    os.close(ready)
    os.close(told)
    folder = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield ProcDirectory(pid, folder)
    finally:
        os.close(folder)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def words(process: ProcDirectory) -> bytes:
    """Return what the reads of its own log give."""
    found = b""
    for read in vm_files.log(process, "x", "process"):
        try:
            data = read.take()
        except (OSError, Unreadable):
            continue
        found += data.data if isinstance(data, Truncated) else data
    return found


@pytest.mark.parametrize("flags", [os.O_PATH, os.O_WRONLY, os.O_WRONLY | os.O_APPEND])
def test_a_file_that_the_vm_s_user_may_not_read_is_not_read_for_him(tmp_path: Path, flags: int) -> None:
    file = tmp_path / "secret"
    file.write_bytes(SECRET)
    file.chmod(0o600)
    descriptor = os.open(file, flags)
    try:
        with stranger_with(descriptor) as process:
            assert SECRET not in words(process)
    finally:
        os.close(descriptor)


def test_a_descriptor_that_changes_while_it_is_looked_at_opens_no_log_of_root_s() -> None:
    """What stands for the file in one moment, and says that it may be read, need not be what is opened in the next."""
    with strangers.everybodys() as place:
        log = Path(f"/var/log/autopsy-{os.getpid()}.log")
        log.write_bytes(SECRET)
        log.chmod(0o600)
        own = place / "own"
        own.write_bytes(b"its own\n")
        os.chown(own, strangers.STRANGER, strangers.STRANGER)

        def toggle() -> None:
            theirs, known = os.open(own, os.O_RDWR), os.open(log, os.O_PATH)
            while True:
                os.dup2(theirs, 2)
                os.dup2(known, 2)

        try:
            with strangers.at_once(toggle) as pid:
                folder = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY)
                read = [words(ProcDirectory(pid, folder)) for _ in range(TRIES)]
                os.close(folder)
        finally:
            log.unlink()
        assert not any(SECRET in data for data in read)
        assert any(read)


def test_a_log_of_its_own_is_read(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_bytes(b"qemu: warning\n")
    os.chown(file, strangers.STRANGER, strangers.STRANGER)
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND)
    try:
        with stranger_with(descriptor) as process:
            assert b"qemu: warning" in words(process)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("whose", [0, strangers.STRANGER])
def test_the_log_of_a_vm_that_has_ended_is_read_if_it_was_its_user_s(tmp_path: Path, whose: int) -> None:
    """A descriptor to write to may have been handed down; what its file holds was never for that user to read."""
    file = tmp_path / "log"
    file.write_bytes(SECRET)
    os.chown(file, whose, whose)
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND)
    try:
        with stranger_with(descriptor) as process:
            table = {
                "fd/2": Section("fd/2", process.link("fd/2")),
                "fdinfo/2": Section("fdinfo/2", process.small("fdinfo/2")),
            }
            status = process.small("status")
    finally:
        os.close(descriptor)
    read = aftermath._own_stream(table, 2, status)
    assert read is not None
    if whose:
        assert read.take() == SECRET
        return
    with pytest.raises(Unreadable, match="not the process's own"):
        read.take()


def test_an_image_s_name_tells_no_more_than_its_user_could_find_out(tmp_path: Path) -> None:
    """To look a name up is to tell whether there is such a file, and which inode it has."""
    with strangers.everybodys(0o711) as place, stranger_with(2) as process:
        hidden, there = tmp_path / "there", place / "there"
        tmp_path.chmod(0o700)
        for path in (hidden, there):
            path.write_bytes(SECRET)
            path.chmod(0o600)
        status = process.small("status")
        names = (str(hidden), str(there), str(place / "gone"))
        found = take(
            [SectionRead(name, partial(images._identity, name, status)) for name in names], Deadline(10), ReadFailures()
        )
        assert [found[name].error for name in names] == ["EACCES", "", "ENOENT"]
        assert found[str(there)].data.split()[1] == str(there.stat().st_ino).encode()


def test_neither_a_device_nor_a_fifo_is_opened_to_find_out_what_it_is(tmp_path: Path) -> None:
    """Whoever waits to write to a FIFO goes on as soon as anybody opens it to read."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    (tmp_path / "link").symlink_to("/fifo")
    os.mknod(tmp_path / "device", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    opened = threading.Event()

    def write() -> None:
        os.close(os.open(fifo, os.O_WRONLY))
        opened.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        time.sleep(0.2)  # until it waits
        for name in ("fifo", "link", "device"):
            with pytest.raises(NotPlain):
                open_below(str(tmp_path), f"/{name}")
        with pytest.raises(NotPlain):
            read_plain(fifo, 10)
        assert not opened.wait(0.5)
    finally:
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        writer.join()
        os.close(reader)


def test_a_link_within_the_target_s_root_is_followed_there(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_bytes(b"its own")
    (tmp_path / "link").symlink_to("/etc/passwd")
    assert read_regular(open_below(str(tmp_path), "/link"), "link", 100) == b"its own"
    listing = open_below(str(tmp_path), "/etc", os.O_DIRECTORY)
    assert os.listdir(listing) == ["passwd"]
    os.close(listing)


def test_a_binary_larger_than_any_qemu_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "qemu"
    binary.write_bytes(os.urandom(3 << 20))
    monkeypatch.setattr(gdb, "MOST_BINARY", 2 << 20)
    with binary.open("rb") as stream, pytest.raises(gdb.TooLarge, match="3 MB"):
        gdb._pack_binary(stream, tmp_path)
    assert not (tmp_path / layout.BINARY).exists()
    monkeypatch.setattr(gdb, "MOST_BINARY", 4 << 20)
    with binary.open("rb") as stream:
        gdb._pack_binary(stream, tmp_path)
    assert (tmp_path / layout.BINARY).stat().st_size > 3 << 20
