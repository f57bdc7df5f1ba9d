"""Clients of a VM's own NBD export, and a drain that comes while they have asked for much."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from autopsy.drill.process import states
from support import lab
from support.wedged.wedges import A_MOMENT, NODE, Stuck

# Old-style negotiation of one export, then 16 MiB are asked for, over and over where they are read.
CLIENT = """
import os, signal, socket, struct, sys

def take(size):
    while size:
        size -= len(end.recv(min(size, 1 << 20)))

def ask():
    for number in range(16):
        end.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, number, 0, 1 << 20))

end = socket.socket(socket.AF_UNIX)
end.connect(sys.argv[1])
take(18)
end.sendall(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 1, 4) + b"disk")
take(10)
ask()
print("asked", flush=True)
if sys.argv[2] == "stops":
    os.kill(os.getpid(), signal.SIGSTOP)
while True:
    take(16 * (16 + (1 << 20)))
    ask()
"""


@contextmanager
def drained(build: lab.Build, *, reads: bool = False) -> Iterator[Stuck]:
    """A `stop` while a client of an export has asked for much, and is stopped before it reads. Else it `reads`."""
    with (
        lab.folder() as place,
        lab.qemu(
            build,
            *("-blockdev", f"driver=file,node-name=file0,filename={lab.disk(place / 'd')}"),
            *("-device", f"{NODE}=file0"),
        ) as vm,
    ):
        vm.qmp("nbd-server-start", addr={"type": "unix", "data": {"path": f"{place}/nbd"}})
        vm.qmp("block-export-add", **{"type": "nbd", "id": "export0", "node-name": "file0", "name": "disk"})
        how = "reads" if reads else "stops"
        with subprocess.Popen([sys.executable, "-c", CLIENT, f"{place}/nbd", how], stdout=subprocess.PIPE) as client:
            try:
                assert client.stdout
                client.stdout.readline()
                if reads:
                    vm.qmp("stop")
                    vm.qmp("cont")
                else:
                    lab.until("its client was stopped", lambda: states(client.pid) == {"T"})
                    with suppress(TimeoutError):
                        vm.qmp("stop", within=A_MOMENT)
                yield Stuck(vm, () if reads else (str(client.pid),))
            finally:
                os.kill(client.pid, signal.SIGKILL)
