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
QUEUE_PAGE, QUEUE_SIZE, NOTIFY, STATUS = 8, 12, 16, 18
DRIVER_OK = 7
DESCRIPTOR, FLAGS = 16, 2  # bytes: a queue's descriptors, then flags and index of what is available


@contextmanager
def disk_whose_driver_claims(build: lab.Build, beyond: int | None, names: tuple[str, ...] = ()) -> Iterator[Stuck]:
    """A virtio disk whose driver says that there are so many requests more than its queue holds, or none, and kicks."""
    with (
        lab.folder() as place,
        lab.qemu(
            build,
            *("-blockdev", f"driver=file,node-name=file0,filename={lab.disk(place / 'd')}"),
            *("-device", f"{NODE}=file0,addr={SLOT},disable-modern=on,ioeventfd=off"),
            *("-qtest", f"unix:{place}/qtest,server=on,wait=off", "-qtest-log", "/dev/null"),
        ) as vm,
    ):
        _drive(place / "qtest", beyond)
        yield Stuck(vm, names)


def _drive(path: Path, beyond: int | None) -> None:
    """Set the device up as its driver would, and let the index say what it should not."""
    configuration = 1 << 31 | SLOT << 11
    with socket.socket(socket.AF_UNIX) as connection, connection.makefile("rw") as stream:
        connection.settimeout(10)
        connection.connect(str(path))

        def say(line: str) -> str:
            stream.write(f"{line}\n")
            stream.flush()
            answer = stream.readline()
            assert answer.startswith("OK"), line
            return answer.removeprefix("OK").strip()

        say(f"outl {ADDRESS} {configuration | BAR0}")
        say(f"outl {DATA} {PORT}")
        say(f"outl {ADDRESS} {configuration | COMMAND}")
        say(f"outw {DATA} 7")
        say(f"outb {PORT + STATUS} 3")
        size = int(say(f"inw {PORT + QUEUE_SIZE}"), 16)
        say(f"outl {PORT + QUEUE_PAGE} {RING >> 12}")
        say(f"outb {PORT + STATUS} {DRIVER_OK}")
        say(f"writew {RING + size * DESCRIPTOR + FLAGS} {0 if beyond is None else size + beyond}")
        say(f"outw {PORT + NOTIFY} 0")
