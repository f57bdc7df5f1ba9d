"""Storage that stops answering when told to, and is set free again in every case."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from autopsy.dataclass import dataclass
from autopsy.drill.process import DrillProcess, run, start, tool
from autopsy.drill.site import Site, undisturbed
from autopsy.errors import AutopsyError, NotPermitted
from autopsy.linux import environment

UNMOUNT_SECONDS = 10.0
MEBIBYTE = 1024 * 1024
SMALLEST = {"ext4": 32 * MEBIBYTE, "xfs": 320 * MEBIBYTE}  # sparse: what is written takes a tenth of it

# Waits for the end of its stdin, which is our end however it comes, SIGKILL included; then sets the file system free.
GUARD = """
PATH=$PATH:/usr/sbin:/sbin
cat >/dev/null
fsfreeze --unfreeze "$1"
umount --lazy "$1"
rm -r --one-file-system "$2"
"""


def need_root(what: str) -> None:
    """Refuse to begin what only root can end.

    Raises:
        NotPermitted: We are not root.
    """
    if os.geteuid() != 0:
        raise NotPermitted(what, "needs root", remedy="run it with sudo, or choose another scenario")


def disk(path: Path, *, mebibytes: int = 64) -> Path:
    """Make a sparse raw disk."""
    with path.open("xb") as stream:
        stream.truncate(mebibytes * MEBIBYTE)
    return path


@dataclass(frozen=True, slots=True)
class LoopFileSystem:
    """A file system of our own on a loop device."""

    mount: Path
    device: str

    def freeze(self) -> None:
        """Make every write to it wait."""
        run("fsfreeze", "--freeze", self.mount)

    def freeze_until_the_end(self, site: Site) -> None:
        """Freeze it; the site's end thaws it ahead of everything else, for in D a process cannot die."""
        with undisturbed():
            site.undo.callback(self.thaw)
            site.by_hand.append(("fsfreeze", "--unfreeze", str(self.mount)))
            self.freeze()

    def thaw(self) -> None:
        """Let the writes go on; one that is not frozen is left as it is."""
        with suppress(AutopsyError):  # EINVAL: it was not frozen
            run("fsfreeze", "--unfreeze", self.mount)


def mount_file_system(site: Site, kind: str = "ext4") -> LoopFileSystem:
    """Mount a new file system from a loop file; the site's end thaws, unmounts and detaches it."""
    need_root("a loop mount")
    image = site.folder / f"{kind}.img"
    mount = site.folder / kind
    mount.mkdir()
    with image.open("xb") as stream:
        stream.truncate(SMALLEST[kind])
    run(f"mkfs.{kind}", "-q", image)
    with undisturbed():
        site.undo.callback(_unmount, mount)
        site.by_hand.append(("umount", str(mount)))
        if not site.keep:
            _guard(site, mount)
        run("mount", "-o", "loop", image, mount)  # mount's own loop device detaches itself at the unmount
        made = LoopFileSystem(mount, run("findmnt", "--noheadings", "--output", "SOURCE", mount).strip())
        site.undo.callback(made.thaw)
    return made


def _guard(site: Site, mount: Path) -> None:
    guard = subprocess.Popen(
        ["/bin/sh", "-c", GUARD, "guard", str(mount), str(site.folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment.ours(),
        start_new_session=True,
    )
    site.undo.push(guard)  # closes its stdin, then waits for it
    site.undo.callback(guard.kill)


def _unmount(mount: Path) -> None:
    deadline = time.monotonic() + UNMOUNT_SECONDS
    while mount.is_mount():
        try:
            run("umount", mount)
        except AutopsyError:
            if time.monotonic() > deadline:
                run("umount", "--lazy", mount)
            time.sleep(0.05)  # a process that was killed holds its files until its last thread has gone


@dataclass(frozen=True, slots=True)
class NbdServer:
    """A real qemu-nbd. `server` is its address as -blockdev driver=nbd takes it."""

    process: DrillProcess
    server: str


def serve_nbd(site: Site, image: Path, *, tcp: bool = False) -> NbdServer:
    """Export a raw image by qemu-nbd, on a UNIX socket or on a TCP port of 127.0.0.1."""
    command: list[str | Path] = [tool("qemu-nbd"), "--format=raw", "--persistent", "--shared=8"]
    if tcp:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        served = start(site, [*command, "--bind=127.0.0.1", f"--port={port}", image], log="nbd.log")
        served.wait_until("it listened", lambda: _listens(socket.AF_INET, ("127.0.0.1", port)))
        return NbdServer(served, f"server.type=inet,server.host=127.0.0.1,server.port={port}")
    path = site.folder / "nbd.sock"
    served = start(site, [*command, f"--socket={path}", image], log="nbd.log")
    served.wait_until("it listened", lambda: _listens(socket.AF_UNIX, str(path)))
    return NbdServer(served, f"server.type=unix,server.path={path}")


def _listens(family: socket.AddressFamily, address: str | tuple[str, int]) -> bool:
    with socket.socket(family) as probe:
        return probe.connect_ex(address) == 0


@dataclass(frozen=True, slots=True)
class FuseExport:
    """A FUSE file system of one file, served by a real daemon that can be stopped."""

    process: DrillProcess
    file: Path


def serve_fuse(site: Site, image: Path) -> FuseExport:
    """Export a raw image as a FUSE file by qemu-storage-daemon."""
    need_root("a FUSE mount")
    file = site.folder / "fuse.raw"
    file.touch()
    site.by_hand.append(("umount", "--lazy", str(file)))
    site.undo.callback(_forget_mount, file)  # the daemon's death leaves the mount there: every access says ENOTCONN
    daemon = start(
        site,
        [
            tool("qemu-storage-daemon"),
            "--blockdev",
            f"driver=file,node-name=file0,filename={image}",
            "--export",
            f"type=fuse,id=export0,node-name=file0,mountpoint={file},writable=on",
        ],
        log="fuse.log",
    )
    daemon.wait_until("its file was there", lambda: file.stat().st_size > 0)
    return FuseExport(daemon, file)


def _forget_mount(file: Path) -> None:
    with suppress(AutopsyError):  # it never came to the mount
        run("umount", "--lazy", file)
