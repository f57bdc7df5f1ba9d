"""Answers scrapes over HTTP from the last round alone: few at once, each for seconds, and no old figure."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec

from autopsy.dataclass import dataclass
from autopsy.linux.confine import sandbox
from autopsy.watch.serving.address import Address, bind
from autopsy.watch.serving.outlet import RoundFeed, readable
from autopsy.watch.state import decode

MOST_SCRAPES = 16  # at once; the oldest goes for the newest
SCRAPE_SECONDS = 10.0  # from its connection to its end; Prometheus' own default
TURN_SECONDS = 0.1  # while a connection is open
STALE_SECONDS = 30.0
TEXT = "text/plain; version=0.0.4; charset=utf-8"
PATHS = ("/metrics", "/")
HINT = b"autopsy watch: the metrics are at /metrics\n"
NOTHING_YET = b"no round of the watch has ended yet\n"
STALE = b"the watch does not come round any more: its last figures are too old to be shown\n"


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
        if self.text:
            return HTTPStatus.OK, self.text
        data = self.data
        try:
            text = self.render(data)
        except (msgspec.MsgspecError, ValueError) as error:
            return HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}\n".encode()
        if data is self.data:  # another round may have come meanwhile
            self.text = text
        return HTTPStatus.OK, text


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
    page = MetricsPage(lambda data: exposition.text(decode(data)))
    with ScrapeServer(listener, page) as server:
        while server.turn(feed):
            pass


class ScrapeServer(ThreadingHTTPServer):
    """The standard library's server, which bounds how many connections there are and how long each may last."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, listener: socket.socket, page: MetricsPage) -> None:
        super().__init__(("", 0), ScrapeAnswer, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.page = page
        self._open: dict[socket.socket, float] = {}  # until when each may last, the oldest first

    def turn(self, feed: RoundFeed) -> bool:
        """Wait for what comes next and do it; return whether the watch is still there."""
        ready = readable(self.socket.fileno(), feed.fileno(), seconds=TURN_SECONDS if self._open else None)
        if feed.fileno() in ready:
            data = feed.take()
            if data is None:
                return False
            if data:
                self.page.put(data, time.monotonic())
        if self.socket.fileno() in ready:
            self.handle_request()
        self._cut_off_late_ones()
        return True

    def get_request(self) -> tuple[socket.socket, str]:
        """Accept a connection."""
        connection, _ = super().get_request()
        connection.settimeout(SCRAPE_SECONDS)  # for one read or write of its thread
        return connection, ""

    def process_request(self, request: socket.socket, client_address: str) -> None:  # type: ignore[override]  # TCP alone
        """Have a thread answer it, in the place of the oldest where there are too many."""
        if len(self._open) >= MOST_SCRAPES:
            self._cut_off(next(iter(self._open)))
        self._open[request] = time.monotonic() + SCRAPE_SECONDS
        super().process_request(request, client_address)

    def handle_error(self, *_: object) -> None:
        """Print nothing: a scraper has gone, or was cut off."""

    def _cut_off_late_ones(self) -> None:
        now = time.monotonic()
        for connection, until in list(self._open.items()):
            if connection.fileno() < 0:  # its thread is through with it
                del self._open[connection]
            elif until <= now:
                self._cut_off(connection)

    def _cut_off(self, connection: socket.socket) -> None:
        """End a connection, whatever its thread waits for: that closes it."""
        self._open.pop(connection, None)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


class ScrapeAnswer(BaseHTTPRequestHandler):
    """One scrape; what its client says is answered and not written down anywhere."""

    server: ScrapeServer
    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"  # what is no request is answered with a status, too

    def version_string(self) -> str:
        """Return what answers, and not which Python."""
        return "autopsy"

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        """Answer with the metrics."""
        self._answer(body_too=True)

    def do_HEAD(self) -> None:
        """Answer as for GET, but for the metrics themselves."""
        self._answer(body_too=False)

    def _answer(self, *, body_too: bool) -> None:
        if self.path.partition("?")[0] in PATHS:
            status, body = self.server.page.answer(time.monotonic())
        else:
            status, body = HTTPStatus.NOT_FOUND, HINT
        self.send_response(status)
        self.send_header("Content-Type", TEXT)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if body_too:
            self.wfile.write(body)
