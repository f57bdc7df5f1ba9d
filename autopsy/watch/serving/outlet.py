"""A process of its own that is fed with each round and puts it out: what hangs or breaks there is not the watch.

The round goes over as the descriptor of a file in memory, so that a process which does not take it costs the watch
nothing; it is given the next one, and begun anew where it has died.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable
from dataclasses import field

from autopsy.dataclass import dataclass
from autopsy.linux import child
from autopsy.linux.child import ChildFailed
from autopsy.linux.tasks.forking import Child, end

READY_SECONDS = 5.0
AGAIN_SECONDS = 5.0  # between two beginnings
LAST_SECONDS = 1.0  # for what it does at its end
READY = b"\0"
FEED = b"r"
MOST_WORDS = 1000


class NotOpened(Exception):
    """The process could not begin its work; the message says why, for people."""


def readable(*descriptors: int, seconds: float | None) -> frozenset[int]:
    """Wait until one can be read, and return those; a watch of many VMs holds more than select(2) knows."""
    poller = select.poll()
    for descriptor in descriptors:
        poller.register(descriptor, select.POLLIN)
    return frozenset(ready for ready, _ in poller.poll(None if seconds is None else seconds * 1000))


@dataclass(slots=True)
class RoundFeed:
    """The end of an outlet: each round as it comes, the newest alone where several have come."""

    end: socket.socket

    def fileno(self) -> int:
        """Return the descriptor, for poll(2)."""
        return self.end.fileno()

    def ready(self) -> None:
        """Tell the watch that work has begun."""
        self.end.sendall(READY)
        self.end.settimeout(0)  # recv_fds(3.11) forgets the flag that would say so

    def refuse(self, words: str) -> None:
        """Tell the watch that it cannot begin, and why."""
        self.end.sendall(words.encode("utf-8", "replace")[:MOST_WORDS] or b"?")

    def take(self) -> bytes | None:
        """Return the newest round that has come; empty where there is none yet, None once the watch has gone."""
        data = b""
        while True:
            try:
                said, descriptors, *_ = socket.recv_fds(self.end, 1, 1)
            except BlockingIOError:
                return data
            for descriptor in descriptors:
                try:
                    data = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
                finally:
                    os.close(descriptor)
            if not said:
                return None


@dataclass(slots=True)
class Outlet:
    """The watch's end of such a process. `work` gets the feed, tells that it is ready, and returns once it ends."""

    name: str
    work: Callable[[RoundFeed], None]
    deaths: int = 0
    _child: Child | None = None
    _feed: socket.socket | None = None
    _begun: float = field(default=-AGAIN_SECONDS)

    def open(self) -> None:
        """Begin.

        Raises:
            NotOpened: it cannot, and says why.
        """
        self._begun = time.monotonic()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # a few rounds at most lie in memory untaken
        with theirs:

            def run() -> bytes:
                ours.close()
                self.work(RoundFeed(theirs))
                return b""

            self._feed = ours
            try:
                self._child = child.spawn(run)
            except ChildFailed as error:
                self.close()
                raise NotOpened(str(error)) from error
        came = readable(ours.fileno(), seconds=READY_SECONDS)
        try:
            said = ours.recv(MOST_WORDS) if came else b"it did not begin in time"
        except OSError:  # it has ended, and left unread what it was sent
            said = b""
        if said != READY:
            self.close()
            raise NotOpened(said.decode("utf-8", "replace") or "its process ended at once")
        ours.settimeout(0)

    def put(self, data: bytes) -> None:
        """Give it a round; nobody waits. One that has died is begun again, but for the first seconds."""
        if self._feed is None or self._child is None or self._ended(self._child):
            self.close()
            if time.monotonic() < self._begun + AGAIN_SECONDS:
                return
            self.deaths += 1
            try:
                self.open()
            except NotOpened:
                return
        if self._feed is None:
            return
        memory = os.memfd_create("round", os.MFD_CLOEXEC)
        try:
            os.write(memory, data)
            socket.send_fds(self._feed, [FEED], [memory])
        except OSError:
            return  # it is slow, or has died: the next round tells
        finally:
            os.close(memory)

    def close(self) -> None:
        """End it, after a moment for its last work."""
        if self._feed is not None:
            self._feed.close()
            self._feed = None
        if self._child is not None:
            readable(self._child.pidfd, seconds=LAST_SECONDS)
            end(self._child)
            self._child = None

    @staticmethod
    def _ended(process: Child) -> bool:
        return bool(readable(process.pidfd, seconds=0))
