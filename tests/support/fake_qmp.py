"""QMP servers that misbehave, each on a real UNIX socket with a real client in its one place."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

Script = Callable[["Client"], None]

GREETING: dict[str, Any] = {
    "QMP": {"version": {"qemu": {"major": 10, "minor": 0, "micro": 2}, "package": "fake"}, "capabilities": ["oob"]}
}


class Client:
    """The connection of whoever is being asked for patience."""

    def __init__(self, connection: socket.socket, over: threading.Event) -> None:
        self.socket = connection
        self.heard = ""
        self.over = over

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def say(self, message: object) -> None:
        self.send(json.dumps(message).encode() + b"\r\n")

    def hear(self) -> dict[str, Any]:
        """Return the next question; the client hanging up ends the script."""
        while (found := self.next_question()) is None:
            data = self.socket.recv(1 << 16)
            if not data:
                raise ConnectionResetError
            self.heard += data.decode()
        return found

    def next_question(self) -> dict[str, Any] | None:
        """Take a question from what was heard; they come one after the other, with nothing between them."""
        try:
            found, end = json.JSONDecoder().raw_decode(self.heard)
        except ValueError:
            return None
        self.heard = self.heard[end:].lstrip()
        question: dict[str, Any] = found
        return question

    def answer(self, question: dict[str, Any], value: object) -> None:
        self.say({"return": value, **{key: question[key] for key in question if key == "id"}})

    def wait(self) -> None:
        """Say nothing until the test is over."""
        self.over.wait()

    def greet(self) -> None:
        """Greet, and take the capabilities."""
        self.say(GREETING)
        self.answer(self.hear(), {})


@contextmanager
def server(path: Path, script: Script) -> Iterator[None]:
    """Listen at `path`, as QEMU does for one client at a time, and let `script` treat each client."""
    over = threading.Event()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(1)
        thread = threading.Thread(target=_serve, args=(listening, script, over))
        thread.start()
        try:
            yield
        finally:
            over.set()
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def _serve(listening: socket.socket, script: Script, over: threading.Event) -> None:
    while not over.is_set():
        try:
            connection, _ = listening.accept()
        except OSError:
            return
        with connection, suppress(OSError):
            script(Client(connection, over))


def polite(answers: dict[str, object], heard: list[str] | None = None) -> Script:
    """Return a script that greets and answers; what is not in `answers` gets an empty object."""

    def script(client: Client) -> None:
        client.greet()
        while True:
            question = client.hear()
            if heard is not None:
                heard.append(question["execute"])
            client.answer(question, answers.get(question["execute"], {}))

    return script


def never_greets(client: Client) -> None:
    client.wait()


def never_negotiates(client: Client) -> None:
    client.say(GREETING)
    client.wait()


def hangs_at(name: str) -> Script:
    def script(client: Client) -> None:
        client.greet()
        while True:
            question = client.hear()
            if question["execute"] == name:
                client.wait()
                return
            client.answer(question, {})

    return script


def hangs_up_at(name: str) -> Script:
    def script(client: Client) -> None:
        client.greet()
        while (question := client.hear())["execute"] != name:
            client.answer(question, {})

    return script


def greets_with(data: bytes) -> Script:
    def script(client: Client) -> None:
        client.send(data)
        client.wait()

    return script


def answers_with(data: bytes) -> Script:
    """Return a script whose answer to everything is these bytes, ID standing for the question's id."""

    def script(client: Client) -> None:
        client.greet()
        while True:
            client.send(data.replace(b"ID", client.hear()["id"].encode()))

    return script


def endless(data: bytes, *, greeted: bool = True) -> Script:
    """Return a script that says the same for ever."""

    def script(client: Client) -> None:
        if greeted:
            client.greet()
        while not client.over.is_set():
            client.send(data)

    return script


def drips(client: Client) -> None:
    """One byte a tenth of a second; nothing is ever complete."""
    client.greet()
    while not client.over.wait(0.1):
        client.send(b" ")


def flood_of_events(client: Client) -> None:
    """Answer everything, among events without end."""
    client.greet()
    event = b'{"event": "RESUME", "timestamp": {"seconds": 1, "microseconds": 2}}\r\n' * 200
    while not client.over.is_set():
        client.socket.settimeout(0)
        with suppress(BlockingIOError):
            client.heard += client.socket.recv(65536).decode()
        client.socket.settimeout(5)
        while question := client.next_question():
            client.answer(question, {"status": "running"})
        client.send(event)


def seconds_of(work: Callable[[], object]) -> float:
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


def peak_growth(work: Callable[[], object]) -> int:
    """Return by how many bytes this process grew at its largest; call it in a child."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    for line in Path(f"/proc/{os.getpid()}/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(key)


def ask(path: Path, command: str) -> Any:
    """Ask one question as any client would; it must be answered."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        with connection.makefile("rwb") as stream:
            stream.readline()
            reply: dict[str, Any] = {}
            for each in ("qmp_capabilities", command):
                stream.write(json.dumps({"execute": each}).encode() + b"\n")
                stream.flush()
                while "return" not in (reply := json.loads(stream.readline())):
                    assert "event" in reply
            return reply["return"]
