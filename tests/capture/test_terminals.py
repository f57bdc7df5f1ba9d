"""Who has the other end of a terminal that a real process has an end of."""

from __future__ import annotations

import os
from pathlib import Path

from autopsy.bundle import layout
from autopsy.bundle.records import SocketEnd
from autopsy.capture.proc import step as proc
from support import looking

READY = "print('ready', flush=True)\ntime.sleep(600)\n"
MASTER = f"""
import os, time
master, slave = os.openpty()
print(os.ttyname(slave), file=open({{path!r}}, "w"))
{READY}"""
SLAVE = f"import os, time\nend = os.open({{name!r}}, os.O_RDWR | os.O_NOCTTY)\n{READY}"


def ends(pid: int, place: Path) -> dict[str, set[int]]:
    """Return whom a capture finds at the other ends of a process's terminals."""
    with looking.scene(pid, place, layout.PROC_FDS) as at:
        proc.fds(at)
        told = looking.decoded(at, layout.SOCKET_ENDS, tuple[SocketEnd, ...])
    return {end.remote: set(end.peer_pids) for end in told if end.remote.startswith("/dev/pts/")}


def test_who_has_the_other_end_is_named_from_either_and_who_has_another_terminal_is_not(tmp_path: Path) -> None:
    path, another = tmp_path / "name", tmp_path / "another"
    with (
        looking.python(MASTER.format(path=str(path))) as master,
        looking.python(MASTER.format(path=str(another))) as stranger,
    ):
        name = path.read_text().strip()
        with looking.python(SLAVE.format(name=name)) as slave:
            from_master, from_slave = (ends(pid, tmp_path / str(pid)) for pid in (master, slave))
            assert from_master[name] == {slave}
            assert master in from_slave[name]
            assert stranger not in from_slave[name]
            assert another.read_text().strip() not in from_slave


def test_an_end_that_nobody_has_the_other_of_is_no_connection(tmp_path: Path) -> None:
    with looking.python("import time\n" + READY) as pid:
        assert not any(os.getpid() in pids for pids in ends(pid, tmp_path).values())
