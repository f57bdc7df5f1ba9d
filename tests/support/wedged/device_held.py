"""A request that a device model alone holds: the block layer has done it, and nothing of QEMU is parked anywhere."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autopsy.drill.machine import Machine
from autopsy.linux.files import read_kernel
from autopsy.linux.mappings import Mapping, parse_maps
from support import lab
from support.wedged.small_guests import WRITE_NOW_AND_THEN, boot_sector

COMPLETES = "lsi_command_complete"
CALLBACKS = "lsi_scsi_info"  # QEMU's struct SCSIBusInfo of this controller
MOST_CALLBACKS = 256
RETURNS = b"\xc3"
LSI = ("-device", "lsi53c895a,id=lsi0", "-device", "scsi-hd,id=sd0,bus=lsi0.0,drive=n0,bootindex=0")

# As the guest that writes now and then, but for its end: at the second sector that is told it computes for ever.
WRITES_THEN_COMPUTES = WRITE_NOW_AND_THEN.replace(bytes.fromhex("663d00700000"), bytes.fromhex("663da0000000")).replace(
    bytes.fromhex("66c706587c40000000"), bytes.fromhex("ebfe90909090909090")
)
COMPUTES = bytes.fromhex("faebfe")


@contextmanager
def on_lsi(build: lab.Build, code: bytes, *more: str) -> Iterator[Machine]:
    """Run a guest of a few bytes that boots from a disk behind an LSI controller."""
    with lab.folder() as place:
        image = boot_sector(lab.disk(place / "d", mebibytes=32), code)
        node = f"driver=raw,node-name=n0,file.driver=file,file.filename={image}"
        with lab.qemu(build, "-blockdev", node, *LSI, *more, boots=True, memory=32) as vm:
            yield vm


def lose_completions(vm: Machine) -> None:
    """Have the controller hear no more that a request is done: needs a QEMU with its symbols."""
    binary = Path(f"/proc/{vm.pid}/exe").readlink()
    listed = subprocess.run(["nm", binary], capture_output=True, check=True, text=True).stdout.splitlines()
    symbols = {name: int(place, 16) for place, _, name in (line.split() for line in listed if line[0] != " ")}
    mappings = [mapping for mapping in parse_maps(read_kernel(f"/proc/{vm.pid}/maps")) if mapping.path == str(binary)]
    base = mappings[0].start
    with open(f"/proc/{vm.pid}/mem", "r+b", buffering=0) as memory:
        place = base + symbols[CALLBACKS]
        memory.seek(place)
        callback = memory.read(MOST_CALLBACKS).index((base + symbols[COMPLETES]).to_bytes(8, "little"))
        code = next(mapping for mapping in mappings if "x" in mapping.permissions)
        memory.seek(place + callback)
        memory.write(_returns(memory.fileno(), code).to_bytes(8, "little"))


def _returns(memory: int, code: Mapping) -> int:
    """Return the address of an instruction that returns at once."""
    return code.start + os.pread(memory, code.end - code.start, code.start).index(RETURNS)
