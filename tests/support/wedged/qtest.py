"""Plays the guest's part from outside: QEMU's own qtest protocol reaches its ports and its memory."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support import lab
from support.wedged.wedges import NODE, Stuck

SLOT, PORT, RING = 5, 0xC000, 0x100000
ADDRESS, DATA = 0xCF8, 0xCFC  # PCI's configuration ports
COMMAND, BAR0 = 0x04, 0x10
# A legacy virtio device's registers, from its first BAR on.
QUEUE_PAGE, NOTIFY, STATUS = 8, 16, 18
DRIVER_OK = 7
SIZE = 256  # a virtio disk's queue: its descriptors take a page, then come flags and index of what is available
INDEX_AT = RING + SIZE * 16 + 2


@contextmanager
def disk_with_an_index(build: lab.Build, index: int, names: tuple[str, ...] = ()) -> Iterator[Stuck]:
    """A virtio disk whose driver says that there are so many requests in its queue of 256, and kicks."""
    with (
        lab.folder() as place,
        lab.qemu(
            build,
            *("-blockdev", f"driver=file,node-name=file0,filename={lab.disk(place / 'd')}"),
            *("-device", f"{NODE}=file0,addr={SLOT},disable-modern=on,queue-size={SIZE},ioeventfd=off"),
            *("-qtest", f"unix:{place}/qtest,server=on,wait=off", "-qtest-log", "/dev/null"),
        ) as vm,
    ):
        _drive(place / "qtest", index)
        yield Stuck(vm, names)


def _drive(path: Path, index: int) -> None:
    """Set the device up as its driver would, and let the index say what it should not."""
    configuration = 1 << 31 | SLOT << 11
    lines = (
        *(f"outl {ADDRESS} {configuration | BAR0}", f"outl {DATA} {PORT}"),
        *(f"outl {ADDRESS} {configuration | COMMAND}", f"outw {DATA} 7"),
        f"outb {PORT + STATUS} 3",
        f"outl {PORT + QUEUE_PAGE} {RING >> 12}",
        f"outb {PORT + STATUS} {DRIVER_OK}",
        f"writew {INDEX_AT} {index}",
        f"outw {PORT + NOTIFY} 0",
    )
    with socket.socket(socket.AF_UNIX) as connection, connection.makefile("rw") as stream:
        connection.settimeout(10)
        connection.connect(str(path))
        for line in lines:
            stream.write(f"{line}\n")
            stream.flush()
            assert stream.readline().startswith("OK"), line
