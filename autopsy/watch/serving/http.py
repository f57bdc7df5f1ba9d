"""Answers scrapes over HTTP from the last round alone: few at once, each for seconds, and no old figure."""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus

import msgspec

from autopsy.linux.confine import sandbox
from autopsy.watch.serving.address import Address, bind
from autopsy.watch.serving.outlet import RoundFeed
from autopsy.watch.state import decode

MOST_SCRAPES = 16  # at once; the oldest goes for the newest
MOST_HEAD = 8 << 10
SCRAPE_SECONDS = 10.0  # from its connection to its end; Prometheus' own default
STALE_SECONDS = 30.0
PART = 1 << 16
TEXT = "text/plain; version=0.0.4; charset=utf-8"
PATHS = (b"/metrics", b"/")
HINT = b"autopsy watch: the metrics are at /metrics\n"
NOTHING_YET = b"no round of the watch has ended yet\n"
STALE = b"the watch does not come round any more: its last figures are too old to be shown\n"


@dataclass(slots=True, eq=False)
class Scrape:
    """One connection: what it has asked so far, then what is left of its answer."""

    connection: socket.socket
    until: float
    asked: bytes = b""
    answer: memoryview | None = None


@dataclass(slots=True)
class MetricsPage:
    """The text of the last round, made when it is asked for; `at` is the moment that the round came."""

    render: Callable[[bytes], bytes]
    at: float = 0.0
    data: bytes = b""
    text: bytes = b""

    def put(self, data: bytes, now: float) -> None:
        """Replace the round."""
        self.data, self.text, self.at = data, b"", now

    def answer(self, now: float) -> tuple[HTTPStatus, bytes]:
        """Return what a scrape is told at this moment."""
        if not self.data:
            return HTTPStatus.SERVICE_UNAVAILABLE, NOTHING_YET
        if now - self.at > STALE_SECONDS:
            return HTTPStatus.SERVICE_UNAVAILABLE, STALE
        self.text = self.text or self.render(self.data)
        return HTTPStatus.OK, self.text


def serve(address: Address, feed: RoundFeed) -> None:
    """Serve until the watch ends: the work of an outlet."""
    from autopsy.watch.serving.metrics import Exposition  # noqa: PLC0415 - the watch itself needs no client

    try:
        listener = bind(address)
    except OSError as error:
        feed.refuse(error.strerror or str(error))
        return
    exposition = Exposition()
    sandbox.keep_no_rights()
    feed.ready()
    Server(listener, feed, MetricsPage(lambda data: exposition.text(decode(data)))).run()


@dataclass(slots=True)
class Server:
    """One thread that waits for all of them at once."""

    listener: socket.socket
    feed: RoundFeed
    page: MetricsPage
    clock: Callable[[], float] = time.monotonic
    scrapes: list[Scrape] = field(default_factory=list)
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)

    def run(self) -> None:
        """Serve until the feed ends."""
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.selector.register(self.feed, selectors.EVENT_READ)
        while self.turn():
            pass

    def turn(self) -> bool:
        """Wait for what comes next and do it; return whether the watch is still there."""
        ready = self.selector.select(self._wait())
        for key, _ in ready:
            if key.fileobj is self.feed:
                data = self.feed.take()
                if data is None:
                    return False
                if data:
                    self.page.put(data, self.clock())
            elif key.fileobj is self.listener:
                self._accept()
            elif isinstance(key.data, Scrape) and key.data in self.scrapes:
                self._go_on(key.data)
        now = self.clock()
        for late in [each for each in self.scrapes if each.until <= now]:
            self._drop(late)
        return True

    def _wait(self) -> float | None:
        if not self.scrapes:
            return None
        return max(0.0, min(each.until for each in self.scrapes) - self.clock())

    def _accept(self) -> None:
        try:
            connection, _ = self.listener.accept()
        except OSError:  # it has gone again, or descriptors are short
            return
        connection.settimeout(0)
        if len(self.scrapes) >= MOST_SCRAPES:
            self._drop(self.scrapes[0])
        scrape = Scrape(connection, self.clock() + SCRAPE_SECONDS)
        self.scrapes.append(scrape)
        self.selector.register(connection, selectors.EVENT_READ, scrape)

    def _go_on(self, scrape: Scrape) -> None:
        try:
            if scrape.answer is None:
                self._read(scrape)
            else:
                self._write(scrape)
        except BlockingIOError:
            return
        except OSError:
            self._drop(scrape)

    def _read(self, scrape: Scrape) -> None:
        part = scrape.connection.recv(MOST_HEAD)
        scrape.asked += part
        whole = b"\r\n\r\n" in scrape.asked or b"\n\n" in scrape.asked
        if not part:
            self._drop(scrape)
        elif whole or len(scrape.asked) >= MOST_HEAD:
            scrape.answer = memoryview(self._answer(scrape.asked, whole=whole))
            self.selector.modify(scrape.connection, selectors.EVENT_WRITE, scrape)

    def _write(self, scrape: Scrape) -> None:
        answer = scrape.answer or memoryview(b"")
        scrape.answer = answer[scrape.connection.send(answer[:PART]) :]
        if not scrape.answer:
            with contextlib.suppress(OSError):
                scrape.connection.shutdown(socket.SHUT_WR)
            self._drop(scrape)

    def _answer(self, asked: bytes, *, whole: bool) -> bytes:
        method, _, rest = asked.split(b"\n", 1)[0].strip().partition(b" ")
        path, _, version = rest.partition(b" ")
        if not whole:
            status, body = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, HINT
        elif not version.startswith(b"HTTP/1."):
            status, body = HTTPStatus.BAD_REQUEST, HINT
        elif method not in {b"GET", b"HEAD"}:
            status, body = HTTPStatus.METHOD_NOT_ALLOWED, HINT
        elif path.partition(b"?")[0] not in PATHS:
            status, body = HTTPStatus.NOT_FOUND, HINT
        else:
            status, body = self._page()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {TEXT}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + (b"" if method == b"HEAD" else body)

    def _page(self) -> tuple[HTTPStatus, bytes]:
        try:
            return self.page.answer(self.clock())
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
            return HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}\n".encode()

    def _drop(self, scrape: Scrape) -> None:
        self.scrapes.remove(scrape)
        with contextlib.suppress(KeyError, ValueError):
            self.selector.unregister(scrape.connection)
        scrape.connection.close()
