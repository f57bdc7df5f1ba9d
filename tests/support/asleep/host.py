"""Runs a host that sleeps: a Linux of our own in an emulated machine, whose console tells what goes on inside."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autopsy.drill.process import start, tool
from autopsy.drill.site import Site, site
from support import lab
from support.asleep import archive
from support.asleep.inside import MARK, SLEEPS

HERE = Path(__file__).resolve().parent
MEMORY = "1536"
TOOLS = ("setpriv", "dmsetup")
DISK_BYTES = 64 << 20
ALIGNED = 512  # of one archive behind the other


def initrd(place: Path, binary: Path) -> Path:
    """Make the initramfs: the small guest's own with its drivers, and behind it what runs in it."""
    scratch = place.parent / "compiled"
    program = str(Path(sys.executable).resolve())
    files = archive.python() | archive.packages(scratch) | archive.qemu(binary)
    files |= archive.tools(*(Path(tool(name)).resolve() for name in TOOLS))
    files |= {"asleep": HERE / "init", "inside.py": HERE / "inside.py", "python": program.encode()}
    own = place.with_suffix(".own")
    archive.pack(files, own)
    _, drivers = lab.guest_files()
    head = drivers.read_bytes()
    place.write_bytes(head + bytes(-len(head) % ALIGNED) + own.read_bytes())
    own.unlink()
    return place


def told_by(there: Site, binary: Path, seconds: float) -> Iterator[dict[str, Any]]:
    """Run it, and yield each line that its inside tells, until it is over; a key is pressed where only one wakes it."""
    kernel, _ = lab.guest_files()
    image = lab.disk(there.folder / "vda", mebibytes=DISK_BYTES >> 20)
    console, control = there.folder / "console", there.folder / "control"
    words = [
        *(tool("qemu-system-x86_64"), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", MEMORY),
        *("-kernel", kernel, "-initrd", initrd(there.folder / "initrd", binary)),
        *("-append", "console=ttyS0 quiet mitigations=off panic=-1 no_console_suspend rdinit=/asleep"),
        *("-serial", f"file:{console}", "-qmp", f"unix:{control},server=on,wait=off"),
        *("-drive", f"if=none,id=vda,format=raw,file={image}", "-device", "virtio-blk-pci,drive=vda"),
    ]
    machine = start(there, words, log="host.log")
    end = time.monotonic() + seconds
    lines, wake_at = 0, float("inf")
    while time.monotonic() < end:
        alive = machine.child.poll() is None
        whole = console.read_text(errors="replace").split("\n")[:-1] if console.exists() else []
        for line in whole[lines:]:
            if line.startswith(MARK):
                what = json.loads(line.removeprefix(MARK))
                wake_at = time.monotonic() + SLEEPS if what.get("sleeps") == "freeze" else wake_at
                yield what
                if "over" in what:
                    return  # that the machine powers off is another matter
        lines = len(whole)
        if time.monotonic() > wake_at:
            press_a_key(control)
            wake_at = float("inf")
        if not alive:
            return
        time.sleep(0.2)
    raise TimeoutError("\n".join(whole[-20:]))


def press_a_key(control: Path) -> None:
    """Press a key of the machine's keyboard, by its monitor."""
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.settimeout(10)
        monitor.connect(str(control))
        with monitor.makefile("rwb") as stream:
            stream.readline()
            key = {"keys": [{"type": "qcode", "data": "ret"}]}
            for question in ({"execute": "qmp_capabilities"}, {"execute": "send-key", "arguments": key}):
                stream.write(json.dumps(question).encode() + b"\n")
                stream.flush()
                stream.readline()


def main() -> None:
    """Show what it tells."""
    with site() as there:
        for what in told_by(there, Path(tool("qemu-system-x86_64")).resolve(), 1200):
            clocks = f"{what.pop('monotonic'):8.1f} {what.pop('boottime'):8.1f}"
            sys.stdout.write(f"{clocks} {json.dumps(what)}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
