"""Storage that stops answering when told to, and is set free again in every case."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from autopsy.drill.process import Process, start
from autopsy.errors import AutopsyError

TOOL_SECONDS = 30.0
UNMOUNT_SECONDS = 10.0
MEBIBYTE = 1024 * 1024
SMALLEST = {"ext4": 32 * MEBIBYTE, "xfs": 320 * MEBIBYTE}  # sparse: what is written takes a tenth of it

PACKAGES = {
    "qemu-nbd": "apt install qemu-utils",
    "qemu-storage-daemon": "apt install qemu-system-common (QEMU 7.2), qemu-utils (later)",
    "fsfreeze": "apt install util-linux",
    "mkfs.ext4": "apt install e2fsprogs",
    "mkfs.xfs": "apt install xfsprogs",
}


def tool(name: str) -> str:
    """Return the path of a program, /sbin included.

    Raises:
        AutopsyError: It is not installed.
    """
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if found is None:
        raise AutopsyError(name, "not found on this host", remedy=PACKAGES.get(name, f"install {name}"))
    return found


def need_root(what: str) -> None:
    """Refuse to begin what only root can end.

    Raises:
        AutopsyError: We are not root.
    """
    if os.geteuid() != 0:
        raise AutopsyError(what, "needs root", remedy="run it with sudo, or choose another scenario")


def run(*command: str | Path) -> str:
    """Run a small tool to its end.

    Raises:
        AutopsyError: It failed; its own words are the cause.
    """
    words = [tool(str(command[0])), *map(str, command[1:])]
    done = subprocess.run(words, capture_output=True, text=True, timeout=TOOL_SECONDS, check=False)
    if done.returncode:
        raise AutopsyError(" ".join(words), done.stderr.strip() or f"exit {done.returncode}", remedy="see above")
    return done.stdout


@contextmanager
def folder(prefix: str = "autopsy-") -> Iterator[Path]:
    """Make a folder with a short path (a socket's has 107 bytes) that goes away with everything in it."""
    with ExitStack() as stack:
        yield make_folder(stack, prefix)


def make_folder(stack: ExitStack, prefix: str = "autopsy-") -> Path:
    """Make a folder; closing the stack removes it with everything in it."""
    path = Path(tempfile.mkdtemp(prefix=prefix))
    stack.callback(shutil.rmtree, path, ignore_errors=True)
    return path


def disk(path: Path, *, mebibytes: int = 64) -> Path:
    """Make a sparse raw disk."""
    with path.open("xb") as stream:
        stream.truncate(mebibytes * MEBIBYTE)
    return path


@dataclass(frozen=True, slots=True)
class FileSystem:
    """A file system of our own on a loop device."""

    mount: Path
    device: str

    def freeze(self) -> None:
        """Make every write to it wait."""
        run("fsfreeze", "--freeze", self.mount)

    def thaw(self) -> None:
        """Let the writes go on; one that is not frozen is left as it is."""
        subprocess.run([tool("fsfreeze"), "--unfreeze", self.mount], capture_output=True, timeout=TOOL_SECONDS, check=False)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Freeze it for a while."""
        try:
            self.freeze()
            yield
        finally:
            self.thaw()


@contextmanager
def file_system(kind: str = "ext4") -> Iterator[FileSystem]:
    """Mount a new file system from a loop file; thawed, unmounted and detached on the way out."""
    with ExitStack() as stack:
        yield mount_file_system(stack, make_folder(stack), kind)


def mount_file_system(stack: ExitStack, place: Path, kind: str = "ext4") -> FileSystem:
    """Mount a new file system below `place`; closing the stack thaws, unmounts and detaches it."""
    need_root("a loop mount")
    image = place / f"{kind}.img"
    mount = place / kind
    mount.mkdir()
    with image.open("xb") as stream:
        stream.truncate(SMALLEST[kind])
    run(f"mkfs.{kind}", "-q", image)
    run("mount", "-o", "loop", image, mount)  # mount's own loop device detaches itself at the unmount
    made = FileSystem(mount, run("findmnt", "--noheadings", "--output", "SOURCE", mount).strip())
    stack.callback(_unmount, mount)
    stack.callback(made.thaw)
    return made


def _unmount(mount: Path) -> None:
    deadline = time.monotonic() + UNMOUNT_SECONDS
    while True:
        done = subprocess.run([tool("umount"), mount], capture_output=True, text=True, timeout=TOOL_SECONDS, check=False)
        if done.returncode == 0 or "not mounted" in done.stderr:
            return
        if time.monotonic() > deadline:
            run("umount", "--lazy", mount)
            return
        time.sleep(0.05)  # a process that was killed holds its files until its last thread has gone


@dataclass(frozen=True, slots=True)
class NbdServer:
    """A real qemu-nbd. `server` is its address as -blockdev driver=nbd takes it."""

    process: Process
    server: str


def serve_nbd(stack: ExitStack, place: Path, image: Path, *, tcp: bool = False) -> NbdServer:
    """Export a raw image by qemu-nbd, on a UNIX socket or on a TCP port of 127.0.0.1."""
    command: list[str | Path] = [tool("qemu-nbd"), "--format=raw", "--persistent", "--shared=8"]
    if tcp:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        served = start(stack, [*command, "--bind=127.0.0.1", f"--port={port}", image], log=place / "nbd.log")
        served.wait_until("it listened", lambda: _listens(socket.AF_INET, ("127.0.0.1", port)))
        return NbdServer(served, f"server.type=inet,server.host=127.0.0.1,server.port={port}")
    path = place / "nbd.sock"
    served = start(stack, [*command, f"--socket={path}", image], log=place / "nbd.log")
    served.wait_until("it listened", lambda: _listens(socket.AF_UNIX, str(path)))
    return NbdServer(served, f"server.type=unix,server.path={path}")


def _listens(family: socket.AddressFamily, address: str | tuple[str, int]) -> bool:
    with socket.socket(family) as probe:
        return probe.connect_ex(address) == 0


@dataclass(frozen=True, slots=True)
class FuseExport:
    """A FUSE file system of one file, served by a real daemon that can be stopped."""

    process: Process
    file: Path


def serve_fuse(stack: ExitStack, place: Path, image: Path, *, binary: str | None = None) -> FuseExport:
    """Export a raw image as a FUSE file by qemu-storage-daemon."""
    need_root("a FUSE mount")
    file = place / "fuse.raw"
    file.touch()
    daemon = start(
        stack,
        [
            binary or tool("qemu-storage-daemon"),
            "--blockdev",
            f"driver=file,node-name=file0,filename={image}",
            "--export",
            f"type=fuse,id=export0,node-name=file0,mountpoint={file},writable=on",
        ],
        log=place / "fuse.log",
    )
    # The daemon unmounts nothing when it is killed: the mount is left, and every access to it says ENOTCONN.
    stack.callback(subprocess.run, [tool("umount"), "--lazy", file], capture_output=True, timeout=TOOL_SECONDS, check=False)
    stack.callback(daemon.end)
    daemon.wait_until("its file was there", lambda: file.stat().st_size > 0)
    return FuseExport(daemon, file)
