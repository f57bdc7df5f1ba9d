"""Starts a QEMU of our own, with a monitor that tests and drills can talk to."""

from __future__ import annotations

import json
import os
import shutil
import socket
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autopsy.dataclass import dataclass
from autopsy.drill.guests import write_halting_firmware
from autopsy.drill.process import DrillProcess, start
from autopsy.drill.site import Site
from autopsy.errors import AutopsyError

BINARIES = ("qemu-system-x86_64", "kvm", "/usr/libexec/qemu-kvm", "/usr/bin/kvm")
ANSWER_SECONDS = 10.0

# As little machine as there can be: nothing is shown, nothing is configured from outside.
QUIET = ("-no-user-config", "-nodefaults", "-display", "none")
ACCELERATE = ("-accel", "kvm", "-accel", "tcg")


class QmpRefused(Exception):
    """QEMU answered a command with an error."""


@dataclass(frozen=True, slots=True)
class Machine:
    """One running QEMU. `monitor` is the socket that an operator's tool would find."""

    process: DrillProcess
    monitor: Path
    control: Path

    @property
    def pid(self) -> int:
        """Return QEMU's process id."""
        return self.process.pid

    def qmp(self, command: str, *, within: float = ANSWER_SECONDS, **arguments: object) -> Any:  # noqa: ANN401 - JSON
        """Ask one question on a connection of its own, so that the monitor is free again afterwards.

        Raises:
            TimeoutError: No answer within that many seconds.
            QmpRefused: QEMU's own error.
        """
        return ask(self.control, command, arguments, within=within)

    def hmp(self, line: str, *, within: float = ANSWER_SECONDS) -> str:
        """Run one line of the human monitor."""
        return str(self.qmp("human-monitor-command", within=within, **{"command-line": line}))

    def qemu_io(self, target: str, command: str, *, within: float = ANSWER_SECONDS) -> str:
        """Put I/O in flight without a guest.

        `target` is the id of a -drive, or `of_device(id)` for a -blockdev that a virtio disk uses. A bare node name
        makes a block backend for one command, whose end drains: with `aio_*` on a stuck node that takes the main loop
        with it. So does a -drive that no device uses, on storage that does not answer: its file is opened again.
        """
        return self.hmp(f'qemu-io {target} "{command}"', within=within)


def of_device(name: str) -> str:
    """Return what `qemu_io` calls the block backend inside a virtio disk."""
    return f"-d /machine/peripheral/{name}/virtio-backend"


def find_qemu() -> Path:
    """Return the QEMU of this host, or the one that AUTOPSY_QEMU names.

    Raises:
        AutopsyError: There is none.
    """
    named = os.environ.get("AUTOPSY_QEMU")
    if named:
        return Path(named)
    for name in BINARIES:
        path = shutil.which(name)
        if path:
            return Path(path)
    raise AutopsyError(
        "qemu-system-x86_64",
        "not found on this host",
        remedy="apt install qemu-system-x86 (Debian, Ubuntu), dnf install qemu-kvm (Fedora, RHEL)",
    )


def start_machine(
    site: Site,
    *arguments: str,
    qemu: Sequence[str | Path] = (),
    accelerate: tuple[str, ...] = ACCELERATE,
    boots: bool = False,
    own_control: bool = False,
) -> Machine:
    """Run a QEMU (`qemu` starts it, or this host's own) and wait until its monitor answers; the site's end kills it.

    Unless it `boots`, its vCPU halts at the first instruction, and what its disks do is our doing alone.
    With `own_control` our questions go to a second monitor, so that the first is free for whoever is tested.

    Raises:
        AutopsyError: It did not come up; its last words are in the cause.
    """
    monitor = site.folder / "qmp"
    control = site.folder / "control" if own_control else monitor
    command: list[str | Path] = [*(qemu or (find_qemu(),)), *QUIET, *accelerate]
    if not boots:
        rom = site.folder / "halt.rom"
        write_halting_firmware(rom)
        command += ["-bios", rom]
    for path in dict.fromkeys((monitor, control)):
        command += ["-qmp", f"unix:{path},server=on,wait=off"]
    started = Machine(start(site, [*command, *arguments], log="qemu.log"), monitor, control)
    started.process.wait_until("its monitor answered", lambda: _answers(control))
    return started


def _answers(path: Path) -> bool:
    try:
        ask(path, "query-status", {}, within=ANSWER_SECONDS)
    except (FileNotFoundError, ConnectionError, TimeoutError):
        return False
    return True


def ask(path: Path, command: str, arguments: dict[str, object], *, within: float) -> Any:  # noqa: ANN401 - JSON
    """Connect to a QMP socket, ask one question, hang up."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(within)
        connection.connect(str(path))
        with connection.makefile("rwb") as stream:
            json.loads(stream.readline() or _hung_up(path))
            _call(stream, path, "qmp_capabilities", {})
            return _call(stream, path, command, arguments)


def _call(stream: Any, path: Path, command: str, arguments: dict[str, object]) -> Any:  # noqa: ANN401 - JSON
    """Send one command and return its answer.

    A QEMU that wakes up may answer what a client that has gone had asked to whoever is connected then: the id tells.
    """
    ours = f"{command} {uuid.uuid4()}"
    stream.write(json.dumps({"execute": command, "arguments": arguments, "id": ours}).encode() + b"\n")
    stream.flush()
    while True:
        message = json.loads(stream.readline() or _hung_up(path))
        if message.get("id") != ours:
            continue
        if "error" in message:
            raise QmpRefused(f"{command}: {message['error']['desc']}")
        if "return" in message:
            return message["return"]


def _hung_up(path: Path) -> bytes:
    raise ConnectionResetError(f"{path}: the monitor hung up")
