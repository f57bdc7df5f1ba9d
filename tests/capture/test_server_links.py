"""Which connections the servers of a process have made themselves, and who took them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest

from autopsy.bundle import layout
from autopsy.bundle.other_programs import ServerLink
from autopsy.capture.proc import server_links
from autopsy.capture.proc import step as proc
from support import lab, looking

# A program that listens, or is given to listen at, and asks another; what it takes it keeps.
SERVES = """
import socket, threading, time
kind, asks = {kind}, {asks!r}
listener = socket.socket(kind)
listener.bind({at!r}) if kind == socket.AF_UNIX else listener.bind(("127.0.0.1", 0))
listener.listen()
made = [socket.socket(kind) for _ in asks]
for one, place in zip(made, asks):
    one.connect(place)
taken = []
threading.Thread(target=lambda: [taken.append(listener.accept()) for _ in range(9)], daemon=True).start()
if kind != socket.AF_UNIX:
    open({said!r}, "w").write(str(listener.getsockname()[1]))
print("ready", flush=True)
time.sleep(600)
"""
ASKS = """
import socket, time
made = []
for place in {asks!r}:
    made.append(socket.socket({kind}))
    made[-1].connect(place)
print("ready", flush=True)
time.sleep(600)
"""
Place = str | tuple[str, int]


class Net:
    """Programs that ask one another, over UNIX sockets or over TCP."""

    def __init__(self, stack: ExitStack, kind: str, folder: Path) -> None:
        self._stack, self._kind, self._folder = stack, kind, folder
        self._many = 0

    def serves(self, *asks: Place) -> tuple[int, Place]:
        self._many += 1
        at = str(self._folder / f"s{self._many}")
        said = self._folder / f"p{self._many}"
        pid = self._stack.enter_context(
            looking.python(SERVES.format(kind=self._kind, asks=asks, at=at, said=str(said)))
        )
        return pid, at if self._kind.endswith("UNIX") else ("127.0.0.1", int(said.read_text()))

    def asks(self, *asks: Place) -> int:
        return self._stack.enter_context(looking.python(ASKS.format(kind=self._kind, asks=asks)))


def links(pid: int, place: Path) -> dict[int, set[int]]:
    with looking.scene(pid, place, layout.PROC_STACKS) as at:
        proc.stacks(at)
    with looking.scene(pid, place, layout.PROC_FDS) as at:
        proc.fds(at)
        told: dict[int, set[int]] = {}
        if (at.folder / layout.SERVER_LINKS).exists():
            for link in looking.decoded(at, layout.SERVER_LINKS, tuple[ServerLink, ...]):
                told.setdefault(link.pid, set()).update(link.peer_pids)
        known = {int(name.split("/")[1]) for name in looking.found(at, layout.SOCKETS) if name.startswith("peer/")}
        assert {pid for peers in told.values() for pid in peers} <= known  # each is looked at as any other
        return told


@pytest.fixture(params=["socket.AF_UNIX", "socket.AF_INET"], ids=["unix", "tcp"])
def net(request: pytest.FixtureRequest) -> Iterator[Net]:
    lab.need_root()
    with ExitStack() as stack:
        yield Net(stack, request.param, stack.enter_context(lab.folder()))


def test_who_is_asked_in_turn_is_found_as_far_as_some_servers(net: Net, tmp_path: Path) -> None:
    pids = []
    asks: tuple[Place, ...] = ()
    for _ in range(server_links.MOST_HOPS + 2):
        pid, place = net.serves(*asks)
        pids.append(pid)
        asks = (place,)
    vm = net.asks(*asks)
    pids.reverse()
    told = links(vm, tmp_path)
    assert told == {asking: {asked} for asking, asked in pairwise(pids) if asking in told}
    assert set(told) == set(pids[: server_links.MOST_HOPS])


def test_other_clients_of_a_server_are_none_that_it_asks(net: Net, tmp_path: Path) -> None:
    _, place = net.serves()
    other, vm = net.asks(place), net.asks(place)
    os.kill(other, signal.SIGSTOP)
    try:
        assert links(vm, tmp_path) == {}
    finally:
        os.kill(other, signal.SIGCONT)


def test_a_client_of_the_vm_is_no_server_of_its(net: Net, tmp_path: Path) -> None:
    _, far = net.serves()
    vm, place = net.serves()
    net.asks(place, far)  # a manager, as it were, which asks another
    assert links(vm, tmp_path) == {}


def test_a_server_with_many_connections_is_asked_for_some(net: Net, tmp_path: Path) -> None:
    many = [net.serves() for _ in range(server_links.MOST_LINKS + 2)]
    near, place = net.serves(*(place for _, place in many))
    told = links(net.asks(place), tmp_path)
    assert len(told[near]) == server_links.MOST_LINKS
