"""One reader of /proc/PID/stat, for names that hold anything and bytes that are none."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as some

from autopsy.bundle import proc_stat


def test_a_thread_may_be_called_like_the_fields_after_its_name() -> None:
    told = proc_stat.parse(b"77 (x) R 1 (y) D 5 6 7 8 9 10 0 0 0 0 3 4 0 0 20 0 12 0 4711 0")
    assert (told.pid, told.comm, told.state, told.ppid, told.session) == (77, "x) R 1 (y", "D", 5, 7)
    assert (told.cpu_ticks, told.threads, told.start_ticks) == (7, 12, 4711)


def test_our_own_process_is_read_as_it_is() -> None:
    told = proc_stat.parse(Path("/proc/self/stat").read_bytes())
    assert (told.pid, told.ppid, told.session) == (os.getpid(), os.getppid(), os.getsid(0))
    assert told.state == "R"
    assert told.environment[0] < told.environment[1]


@given(some.binary(max_size=200))
def test_arbitrary_bytes_say_nothing_and_raise_nothing(data: bytes) -> None:
    assert proc_stat.parse(data).threads >= 0
