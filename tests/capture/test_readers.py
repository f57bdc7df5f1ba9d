"""Reads that hang cost themselves, and nothing else."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopsy.bundle import sections as files
from autopsy.capture.reading.procfs import OPEN, read_file, tail_of
from autopsy.capture.reading.programs import output
from autopsy.capture.reading.reader import (
    ReadFailures,
    SectionFile,
    SectionRead,
    Truncated,
    Unreadable,
    sections,
    store,
    take,
)
from autopsy.capture.step import Collected, Deadline, TimedOut
from autopsy.linux.child import ChildTimedOut, in_child
from support import lab, looking


def sleep_for_ever() -> bytes:
    time.sleep(600)
    return b""


def fail(error: Exception) -> bytes:
    raise error


def give(data: bytes) -> Callable[[], bytes]:
    return lambda: data


def open_without_writer(fifo: Path) -> bytes:
    return fifo.read_bytes()


def test_what_comes_before_and_after_a_hang_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    trouble = ReadFailures()
    reads = [
        SectionRead("before", give(b"1")),
        SectionRead("hung", partial(open_without_writer, tmp_path / "fifo"), seconds=0.2),
        SectionRead("after", give(b"2")),
    ]
    got = take(reads, Deadline(10), trouble)
    assert got["before"].data == b"1"
    assert got["after"].data == b"2"
    assert got["hung"].error.startswith("did not answer in 0.2 s, asleep in ")
    assert isinstance(trouble.outcome(), TimedOut)
    assert "hung did not answer" in trouble.outcome().why
    assert trouble.left_behind == []


def test_what_shares_the_fate_of_a_hang_is_not_tried() -> None:
    reads = [
        SectionRead("maps", sleep_for_ever, "mmap_lock", 0.2),
        SectionRead("smaps", lambda: pytest.fail("tried"), "mmap_lock"),
        SectionRead("io", give(b"1")),
        SectionRead("numa_maps", lambda: pytest.fail("tried"), "mmap_lock"),
    ]
    trouble = ReadFailures()
    got = take(reads, Deadline(10), trouble)
    assert got["smaps"].error == got["numa_maps"].error == "not tried: maps hung"
    assert got["io"].data == b"1"
    assert len(trouble.hangs) == 1


def test_a_fuse_file_whose_daemon_hangs_is_one_unreadable_section(short: Path) -> None:
    trouble = ReadFailures()
    with lab.fuse(lab.disk(short / "d.raw")) as export, lab.stopped(export.process):
        reads = [
            SectionRead("image", partial(read_file, str(export.file)), seconds=0.3),
            SectionRead("other", give(b"1")),
        ]
        got = take(reads, Deadline(10), trouble)
    assert "did not answer in 0.3 s" in got["image"].error
    assert got["other"].data == b"1"


def test_a_reader_that_cannot_be_killed_is_left_behind_and_named() -> None:
    trouble = ReadFailures()
    with lab.file_system() as mounted, lab.frozen(mounted):
        write = partial((mounted.mount / "new").write_bytes, b"x")
        got = take(
            [SectionRead("write", lambda: b"%d" % write(), seconds=0.3), SectionRead("other", give(b"1"))],
            Deadline(10),
            trouble,
        )
    assert got["other"].data == b"1"
    (left,) = trouble.left_behind
    assert left.state == "D"
    assert left.wchan in got["write"].error
    assert f"left behind: {left.pid} (D, {left.wchan})" in trouble.outcome().why
    lab.until("it has gone", lambda: os.waitpid(left.pid, os.WNOHANG)[0] == left.pid)


def test_a_reader_that_dies_costs_one_section() -> None:
    def die() -> bytes:
        os.kill(os.getpid(), signal.SIGKILL)
        return b""

    got = take(
        [SectionRead("a", give(b"1")), SectionRead("b", die), SectionRead("c", give(b"2"))],
        Deadline(10),
        ReadFailures(),
    )
    assert (got["a"].data, got["b"].error, got["c"].data) == (b"1", "its reader died", b"2")


def test_when_the_time_is_up_the_rest_is_said_to_be_unread() -> None:
    trouble = ReadFailures()
    got = take([SectionRead("a", sleep_for_ever), SectionRead("b", give(b"1"))], Deadline(0.5), trouble)
    assert "did not answer" in got["a"].error
    assert got["b"].error == "not read: this step's time was up"
    assert "1 sections were not read in time" in trouble.outcome().why


def who() -> bytes:
    return str(os.getpid()).encode()


def hang(fifo: Path) -> bytes:
    return fifo.read_bytes()


def test_one_reader_reads_list_after_list_until_one_hangs_or_alters_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    trouble = ReadFailures()

    def read(**kinds: bool) -> list[bytes]:
        reads = [SectionRead(name, who, alters=alters) for name, alters in kinds.items()]
        return [section.data for section in take(reads, Deadline(10), trouble).values()]

    with trouble.one_reader():
        first = read(one=False, two=False) + read(three=False) + read(four=True)
        assert len(set(first)) == 1
        (after_it_was_altered,) = read(five=False)
        stuck = SectionRead("hung", partial(hang, tmp_path / "fifo"), seconds=0.2)
        told = take([stuck, SectionRead("after", who)], Deadline(10), trouble)
        assert told["hung"].error.startswith("did not answer")
        readers = {*first, after_it_was_altered, told["after"].data}
        assert len(readers) == 3
        assert read(six=False) == [told["after"].data]
        local = take([SectionRead("local", lambda: who())], Deadline(10), trouble)["local"].data  # noqa: PLW0108 - not to be pickled
        assert local not in readers
    assert not [pid for pid in (*readers, local) if Path(f"/proc/{pid.decode()}").exists()]
    assert not trouble.left_behind
    assert read(seven=False) != read(eight=False)


def test_a_reader_that_died_while_it_waited_costs_nothing() -> None:
    trouble = ReadFailures()
    with trouble.one_reader():
        pid = int(take([SectionRead("one", who)], Deadline(10), trouble)["one"].data)
        os.kill(pid, signal.SIGKILL)
        while (stat := Path(f"/proc/{pid}/stat")).exists() and " Z " not in stat.read_text():
            time.sleep(0.01)
        (section,) = take([SectionRead("two", who)], Deadline(10), trouble).values()
    assert int(section.data) != pid


def test_errors_of_any_words_survive_the_file(tmp_path: Path) -> None:
    reads = [
        SectionRead("refused", partial(fail, PermissionError(13, "x"))),
        SectionRead("hostile", partial(fail, ValueError("a) <==\n==> forged (3 bytes) <==\n\udcff\x1b[31m"))),
        SectionRead("said", partial(fail, Unreadable("it is not installed"))),
        SectionRead("last", give(b"\0\xff")),
    ]
    with looking.scene(os.getpid(), tmp_path) as at:
        store(at, "x.txt", reads, ReadFailures())
        got = looking.found(at, "x.txt")
    assert list(got) == ["refused", "hostile", "said", "last"]
    assert got["refused"].error == "EACCES"
    assert got["said"].error == "it is not installed"
    assert got["last"].data == b"\0\xff"


def test_a_cut_is_told_beside_what_was_read() -> None:
    got = take([SectionRead("big", lambda: Truncated(b"start", "cut after 5 bytes"))], Deadline(10), ReadFailures())
    assert got["big"].data == b"start"
    assert got["big (rest)"].error == "cut after 5 bytes"


def test_all_is_collected_when_nothing_hung() -> None:
    trouble = ReadFailures()
    take([SectionRead("gone", partial(fail, FileNotFoundError(2, "x")))], Deadline(10), trouble)
    assert trouble.outcome() == Collected()


def test_what_was_read_is_on_disk_before_the_hang_is_over(tmp_path: Path) -> None:
    with looking.scene(os.getpid(), tmp_path) as at:

        def collect() -> bytes:
            store(
                at,
                "x.txt",
                [SectionRead("a", give(b"1")), SectionRead("b", sleep_for_ever, seconds=60)],
                ReadFailures(),
            )
            return b""

        with pytest.raises(ChildTimedOut):
            in_child(collect, 0.5)
        assert looking.found(at, "x.txt")["a"].data == b"1"


def test_a_reader_ends_with_whoever_started_it(tmp_path: Path) -> None:
    def collect() -> bytes:
        def told() -> bytes:
            (tmp_path / "pid").write_text(str(os.getpid()))
            return sleep_for_ever()

        take([SectionRead("a", told, seconds=60)], Deadline(60), ReadFailures())
        return b""

    with pytest.raises(ChildTimedOut):
        in_child(collect, 0.5)
    pid = int((tmp_path / "pid").read_text())
    lab.until("the reader has ended", lambda: lab.states(pid) <= {"Z"})  # somebody else reaps it


def test_a_reader_ends_when_its_sections_are_no_longer_wanted() -> None:
    wanted = sections(
        [SectionRead("a", give(b"1")), SectionRead("b", sleep_for_ever, seconds=60)], Deadline(60), ReadFailures()
    )
    assert next(wanted)[0].data == b"1"
    wanted.close()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.binary(max_size=100_000), max_size=20))
def test_bytes_come_through_as_they_were(parts: list[bytes]) -> None:
    reads = [SectionRead(str(number), give(data)) for number, data in enumerate(parts)]
    got = take(reads, Deadline(20), ReadFailures())
    assert [section.data for section in got.values()] == parts


def test_a_section_larger_than_the_pipe_comes_through() -> None:
    got = take(
        [SectionRead("big", lambda: b"x" * (5 << 20)), SectionRead("next", give(b"1"))], Deadline(20), ReadFailures()
    )
    assert len(got["big"].data) == 5 << 20
    assert got["next"].data == b"1"


def test_a_program_is_cut_when_its_time_is_up_and_ends() -> None:
    cut = output(["sh", "-c", "echo early; exec sleep 600"], seconds=0.3)
    assert isinstance(cut, Truncated)
    assert cut.data == b"early\n"
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_program_that_never_stops_talking_is_cut() -> None:
    cut = output(["yes"], seconds=20, most=1000)
    assert isinstance(cut, Truncated)
    assert (len(cut.data), cut.why) == (1000, "cut after 1000 bytes")


def test_a_program_that_is_missing_or_fails_says_so() -> None:
    with pytest.raises(Unreadable, match="no-such-program is not installed"):
        output(["no-such-program"], seconds=1)
    with pytest.raises(Unreadable, match="went wrong"):
        output(["sh", "-c", "echo went wrong >&2; exit 3"], seconds=20)


def test_a_log_that_is_a_pipe_is_not_read_dry(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    try:
        os.write(writing, b"words for somebody else")
        with pytest.raises(Unreadable):
            tail_of(reading, 100)
        assert os.read(reading, 100) == b"words for somebody else"
    finally:
        os.close(reading)
        os.close(writing)
    (tmp_path / "log").write_bytes(b"first\nsecond\nthird\n")
    log = os.open(tmp_path / "log", OPEN)
    try:
        assert tail_of(log, 10) == b"third\n"
    finally:
        os.close(log)


def test_a_file_of_sections_is_ours_alone(tmp_path: Path) -> None:
    with looking.scene(os.getpid(), tmp_path) as at:
        with SectionFile(at, "x.txt") as stored:
            stored.append([files.Section("a", b"1")])
        assert (at.folder / "x.txt").stat().st_mode & 0o777 == 0o600
        theirs = tmp_path / "theirs"
        theirs.write_bytes(b"theirs")
        (at.folder / "link").symlink_to(theirs)
        with SectionFile(at, "link") as stored:
            stored.append([files.Section("a", b"1")])
        assert not (at.folder / "link").is_symlink()
        assert theirs.read_bytes() == b"theirs"


def test_a_section_with_an_endless_name_hides_none_after_it(tmp_path: Path) -> None:
    with looking.scene(os.getpid(), tmp_path) as at:
        with SectionFile(at, "x.txt") as stored:
            stored.append([files.Section("/mnt/" + "x" * 4000, b"1"), files.Section("y (3 bytes) <==\n", b"2")])
            stored.append([files.Section("after", b"3")])
        got = looking.found(at, "x.txt")
    assert [section.data for section in got.values()] == [b"1", b"2", b"3"]
    assert list(got)[2] == "after"
