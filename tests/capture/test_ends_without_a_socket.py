"""Who is at the other end of a FIFO that has a name, and of a connection that nobody has accepted."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from autopsy.bundle import layout
from autopsy.bundle.records import SocketEnd
from autopsy.capture.proc import step as proc
from autopsy.capture.step import Collected
from support import looking

OPENS = """
import os, time
end = os.open({path!r}, {how} | os.O_NONBLOCK)
print("ready", flush=True)
time.sleep(600)
"""
LISTENS = """
import socket, time
server = socket.create_server(("127.0.0.1", {port}))
print("ready", flush=True)
time.sleep(600)
"""


def ends(pid: int, place: Path) -> list[SocketEnd]:
    with looking.scene(pid, place, layout.PROC_FDS) as at:
        assert isinstance(proc.fds(at), Collected)
        return looking.decoded(at, layout.SOCKET_ENDS, list[SocketEnd])


def test_whoever_has_a_named_fifo_is_told_and_whoever_has_another_of_that_name_is_not(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    reads, writes = (OPENS.format(path=str(path), how=how) for how in ("os.O_RDONLY", "os.O_WRONLY"))
    os.mkfifo(path)
    with looking.python(reads) as reader, looking.python(writes) as writer:
        (end,) = (end for end in ends(writer, tmp_path / "before") if end.remote == str(path))
        assert (end.family, end.peer_pids) == ("pipe", (reader,))
        path.unlink()
        os.mkfifo(path)
        with looking.python(reads) as another, looking.python(writes) as later:
            (end,) = (end for end in ends(later, tmp_path / "after") if end.remote == str(path))
            assert end.peer_pids == (another,)


def test_a_connection_that_nobody_has_accepted_is_its_listener_s(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with (
        looking.python(LISTENS.format(port=port)) as server,
        socket.create_connection(("127.0.0.1", port)) as connection,
    ):
        (end,) = (end for end in ends(os.getpid(), tmp_path) if end.fd == connection.fileno())
        assert end.peer_pids == (server,)
