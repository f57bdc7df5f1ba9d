"""Real QEMUs that have not come to the start of their VM."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from autopsy.drill.machine import Machine
from autopsy.drill.process import start
from autopsy.drill.site import site
from support import lab


@contextmanager
def awaits_client(build: lab.Build, wait: str = "on") -> Iterator[Machine]:
    """A QEMU whose serial port waits for its first client, so that the VM has not started."""
    with site() as there:
        port, monitor = (there.folder / name for name in ("serial.sock", "qmp.sock"))
        process = start(
            there,
            [build.binary, *build.firmware_arguments, "-name", "waits", "-no-user-config", "-nodefaults",
             *("-display", "none", "-machine", "none", "-monitor", "none"),
             *("-chardev", f"socket,id=port,path={port},server=on,wait={wait}", "-serial", "chardev:port"),
             *("-qmp", f"unix:{monitor},server=on,wait={wait}")],
            log="qemu.log",
        )  # fmt: skip
        process.wait_until("it listens", (port if wait == "on" else monitor).exists)
        yield Machine(process, monitor, monitor)
