"""A real S3 server (SeaweedFS) for tests, and a link to it that is slow or breaks."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

BUCKET = "bundles"
# What the hypervisors have: they put, and neither list nor read.
KEYS = {"admin": ("Admin", "Read", "Write", "List"), "hypervisor": (f"Write:{BUCKET}",)}
START_SECONDS = 60.0
# What talks to a bucket leaves threads behind, and tests fork: so it is done in processes of their own.
BEGIN = """
import sys, time
from pathlib import Path
from autopsy.fleet.places.bucket import BucketPlace
from autopsy.fleet.places.place import PlaceFailed
for _ in range(100):
    try:
        BucketPlace(sys.argv[1]).put_new(f"begin/{time.monotonic_ns()}", Path(sys.argv[2]))
        print("begun")
        break
    except PlaceFailed:
        time.sleep(0.1)
"""
FILES = """
import json, sys
from autopsy.fleet.places.opening import open_place
print(json.dumps({file.key: file.size for file in open_place(sys.argv[1]).files(sys.argv[2])}))
"""


def apart(script: str, *words: str, env: Mapping[str, str]) -> str:
    """Run a few lines of Python in a process of their own, and return what they print."""
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **env},
        timeout=100,
    )
    return done.stdout.strip()


def free_ports(count: int) -> tuple[int, ...]:
    """Return ports that nobody listens on, below those that the kernel gives to clients; gRPC takes 10,000 more."""
    found: list[int] = []
    port = 12000 + os.getpid() % 7000
    while len(found) < count:
        port += 1
        with contextlib.ExitStack() as stack:
            try:
                for number in (port, port + 10000):
                    stack.enter_context(contextlib.closing(socket.socket())).bind(("127.0.0.1", number))
            except OSError:
                continue
            found.append(port)
    return tuple(found)


@dataclass(slots=True)
class S3Server:
    """One server with its data in a folder, which outlives it."""

    folder: Path
    volumes: int = 8
    ports: tuple[int, ...] = field(default_factory=lambda: free_ports(4))
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it takes a request."""
        master, volume, filer, s3 = self.ports
        (self.folder / "data").mkdir(exist_ok=True)
        config = self.folder / "s3.json"
        identities = [
            {"name": name, "credentials": [{"accessKey": name, "secretKey": f"secret-{name}"}], "actions": actions}
            for name, actions in KEYS.items()
        ]
        config.write_text(json.dumps({"identities": identities}))
        words = (
            *("server", f"-dir={self.folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
            *(f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"),
            *(
                "-s3",
                f"-s3.port={s3}",
                f"-s3.config={config}",
                "-s3.iam=false",
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
            ),
            *("-master.volumeSizeLimitMB=64", f"-volume.max={self.volumes}"),
        )
        with open(self.folder / "weed.log", "ab") as log:
            self.process = subprocess.Popen([weed(), *words], stdout=log, stderr=log, cwd=self.folder)
        until = time.monotonic() + START_SECONDS
        while True:
            done = apart(BEGIN, f"s3://{BUCKET}", str(self.folder / "s3.json"), env=self.environment("admin"))
            if done == "begun":
                return
            assert self.process.poll() is None, (self.folder / "weed.log").read_text()[-2000:]
            assert time.monotonic() < until, (self.folder / "weed.log").read_text()[-2000:]

    def kill(self) -> None:
        """End it as a lost power line does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        for port in self.ports:
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108 - where it lays them
                left.unlink(missing_ok=True)
            for left in Path("/tmp").glob(f"seaweedfs-*-{port + 10000}.sock"):  # noqa: S108 - likewise
                left.unlink(missing_ok=True)

    def environment(self, who: str, port: int = 0, secret: str = "") -> dict[str, str]:
        """Return what gives somebody access; over another port where that leads to it."""
        return {
            "AWS_ENDPOINT": f"http://127.0.0.1:{port or self.ports[3]}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": who,
            "AWS_SECRET_ACCESS_KEY": secret or f"secret-{who}",
        }


def files(server: S3Server, address: str = f"s3://{BUCKET}", below: str = "bundles") -> dict[str, int]:
    """Return what a bucket holds: keys and sizes."""
    found: dict[str, int] = json.loads(apart(FILES, address, below, env=server.environment("admin")))
    return found


def weed() -> str:
    """Return SeaweedFS's program, which lies beside our own Python."""
    return shutil.which("weed", path=str(Path(sys.executable).parent)) or "weed"


@contextmanager
def s3_server(folder: Path, **how: int) -> Iterator[S3Server]:
    """Run a server."""
    server = S3Server(folder, **how)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@contextmanager
def environment(names: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process for a while."""
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@dataclass(slots=True)
class Link:
    """A way to the server that takes so many bytes a second, and breaks after so many where that is wanted."""

    to: int
    bytes_a_second: int
    port: int = 0
    passed: int = 0
    _listener: socket.socket = field(default_factory=socket.socket)

    def __enter__(self) -> Self:
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
                server = socket.create_connection(("127.0.0.1", self.to))
                threading.Thread(target=self._up, args=(client, server), daemon=True).start()
                threading.Thread(target=_down, args=(server, client), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        step = max(1, self.bytes_a_second // 50)
        with contextlib.suppress(OSError):
            while data := client.recv(step):
                server.sendall(data)
                self.passed += len(data)
                time.sleep(len(data) / self.bytes_a_second)
        for end in (client, server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _down(server: socket.socket, client: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := server.recv(1 << 16):
            client.sendall(data)
        client.shutdown(socket.SHUT_WR)


def kill(process: subprocess.Popen[str]) -> None:
    """End a process of ours at once."""
    process.send_signal(signal.SIGKILL)
    process.communicate()
