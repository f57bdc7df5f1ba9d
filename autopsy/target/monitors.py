"""The monitors that a QEMU was started with, and how each is reached from here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

import msgspec

from autopsy.bundle.manifest import MonitorSocket
from autopsy.dataclass import dataclass
from autopsy.linux import unix_sockets
from autopsy.linux.files import real_path_in
from autopsy.linux.unix_sockets import Listener, listeners_seen_by, socket_of, sockets_of
from autopsy.target.command_line import Option, settings
from autopsy.target.identity import clean

Protocol = Literal["qmp", "hmp"]
PORTS = ("serial", "parallel", "virtioconsole", "debugcon")  # may share their device with a monitor
OBJECTS: dict[str, Protocol] = {"monitor-qmp": "qmp", "monitor-hmp": "hmp"}
OFF = frozenset({"off", "no", "n", "false"})
NO_MONITOR = MonitorSocket(protocol="hmp", transport="other", address="none")


def told(given: Sequence[Option]) -> tuple[MonitorSocket, ...]:
    """Return the monitors that the command line tells of, as QEMU sees them; none is reached out for."""
    devices = {
        device["id"]: device for option in given if option.name == "chardev" if "id" in (device := _device(option))
    }
    sockets = []
    for option in given:
        if option.name in ("qmp", "qmp-pretty"):
            sockets.append(_from_short(option.value, "qmp", devices))
        elif option.name == "monitor" or (option.name in PORTS and option.value.startswith("mon:")):
            sockets.append(_from_short(option.value, "hmp", devices))
        elif option.name == "mon":
            mon = settings(option.value, implied="chardev")
            protocol: Protocol = "qmp" if mon.get("mode") == "control" else "hmp"
            sockets.append(_from_device(devices.get(mon.get("chardev", ""), {}), protocol))
        elif option.name == "object":
            # Since QEMU 11.1 a monitor is an object that a user can make as well.
            made = settings(option.value, implied="qom-type")
            if made.get("qom-type") in OBJECTS:
                sockets.append(_from_device(devices.get(made.get("chardev", ""), {}), OBJECTS[made["qom-type"]]))
    return tuple(monitor for monitor in sockets if monitor.address != "none")


def _device(option: Option) -> dict[str, str]:
    """Return a -chardev's keys under their short names; the JSON of chardev-add nests them."""
    given = settings(option.value, implied="backend")
    return {key.rpartition(".")[2] if key != "backend.type" else "backend": value for key, value in given.items()}


def _from_short(value: str, protocol: Protocol, devices: dict[str, dict[str, str]]) -> MonitorSocket:
    """Read the short form of a character device: `unix:/x,server=on`, `tcp:host:port`, `stdio`, `chardev:id`."""
    value = value.removeprefix("mon:")
    kind, _, rest = value.partition(":")
    if kind == "chardev":
        return _from_device(devices.get(rest, {}), protocol)
    if kind == "unix":
        given = settings(rest, implied="path")
        return _from_device({"backend": "socket", **given}, protocol)
    if kind in ("tcp", "telnet", "tn3270", "websocket"):
        address = rest.partition(",")[0]
        return MonitorSocket(protocol=protocol, transport="tcp", address=address)
    if kind == "fd":
        return _from_device({"backend": "socket", "fd": rest.partition(",")[0]}, protocol)
    return _from_device({"backend": value.partition(",")[0].partition(":")[0], "path": rest}, protocol)


def _from_device(device: dict[str, str], protocol: Protocol) -> MonitorSocket:
    backend = device.get("backend", "none")
    if backend == "socket" and "fd" in device:
        return MonitorSocket(protocol=protocol, transport="fd", address=device["fd"])
    if backend == "socket" and "path" in device:
        prefix = "@" if device.get("abstract") == "on" else ""
        waits = device.get("wait", "on") not in OFF
        return MonitorSocket(protocol=protocol, transport="unix", address=prefix + device["path"], waits=waits)
    if backend == "socket":
        address = f"{device.get('host', '')}:{device.get('port', '')}"
        return MonitorSocket(protocol=protocol, transport="tcp", address=address)
    if backend in ("stdio", "pty"):
        return MonitorSocket(protocol=protocol, transport=_kind(backend), address=backend)
    if backend in ("none", "null"):
        return NO_MONITOR
    return MonitorSocket(
        protocol=protocol, transport="other", address=":".join(filter(None, (backend, device.get("path"))))
    )


def _kind(backend: str) -> Literal["stdio", "pty"]:
    return "stdio" if backend == "stdio" else "pty"


@dataclass(frozen=True, slots=True)
class Ears:
    """The sockets that one process listens on."""

    pid: int
    listeners: tuple[Listener, ...]


def ears_of(pid: int, around: tuple[Listener, ...] | None = None) -> Ears:
    """Return what a process listens on; `around` is what is known of its network namespace already."""
    try:
        around = listeners_seen_by(pid) if around is None else around
    except OSError:
        around = ()
    own = sockets_of(pid)
    return Ears(pid, tuple(listener for listener in around if listener.inode in own))


def found_listening(given: Sequence[Option] | None, ears: Ears) -> tuple[MonitorSocket, ...]:
    """Return the monitors of the command line, with inherited sockets given their path.

    Without a command line (it could not be read, or it names a file of options) a listening socket that is called
    after QMP is taken for what its name says; whoever connects learns the truth from the greeting.
    """
    known = tuple(_named(monitor, ears) for monitor in told(given or ()))
    if given is not None and not any(option.name == "readconfig" for option in given):
        return known
    addresses = {monitor.address for monitor in known}
    return known + tuple(
        MonitorSocket(protocol="qmp", transport="unix", address=listener.path)
        for listener in ears.listeners
        if listener.path and listener.path not in addresses and _called_qmp(listener.path)
    )


def _called_qmp(path: str) -> bool:
    name = os.path.basename(path)
    return "qmp" in name or name == "monitor.sock"  # the latter is libvirt's


def _named(monitor: MonitorSocket, ears: Ears) -> MonitorSocket:
    if monitor.transport != "fd" or not monitor.address.isdecimal():
        return monitor
    inode = socket_of(ears.pid, int(monitor.address))
    path = next((listener.path for listener in ears.listeners if listener.inode == inode), "")
    return msgspec.structs.replace(monitor, transport="unix", address=path) if path else monitor


def reached(monitor: MonitorSocket, ears: Ears) -> MonitorSocket:
    """Return the monitor with the path on which we can connect to it, if there is one.

    Looks paths up below /proc/PID/root, which can block where a file system hangs: call it in a child.
    """
    if monitor.transport != "unix":
        return monitor
    pid, address = ears.pid, monitor.address
    if not any(listener.path == address for listener in ears.listeners):
        return monitor  # QEMU is the client there, or it has closed the socket
    if address.startswith("@"):
        same = os.readlink(f"/proc/{pid}/ns/net") == os.readlink("/proc/self/ns/net")
        return msgspec.structs.replace(monitor, reachable=address if same else "")
    try:
        place = place_of(pid, address)
        theirs = os.lstat(f"/proc/{pid}/root{place}")
    except OSError:
        return monitor  # the socket's file has been removed: nobody can connect any more
    try:
        ours = os.lstat(place)
        here = (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)
    except OSError:
        here = False
    return msgspec.structs.replace(monitor, reachable=place if here else f"/proc/{pid}/root{place}")


def place_of(pid: int, path: str) -> str:
    """Return a socket's path as the process sees it, told from its root; a relative one is from its cwd.

    No link is left in its folder. A link in the socket's own place is no way to it: nobody can bind a socket there.

    Raises:
        OSError: nothing is there.
    """
    root = f"/proc/{pid}/root"
    folder, name = os.path.split(path)
    if path.startswith("/"):
        return os.path.join(real_path_in(root, folder), name)
    # The link is told from our own root; below it, the process's own root is cut off.
    below = os.readlink(f"/proc/{pid}/cwd")
    above = os.readlink(root)
    inside = below.removeprefix(above) if above != "/" else below
    return os.path.join(real_path_in(root, f"{inside}/{folder}"), name)


def reached_and_held(monitor: MonitorSocket, ears: Ears) -> MonitorSocket:
    """Return the monitor with the path that reaches it, and the clients that hold it, as "libvirtd (pid 812)".

    The kernel is asked for them, not the VM. Enters the process's network namespace for good: call it in a child.
    """
    monitor = reached(monitor, ears)
    if not monitor.reachable:
        return monitor
    return msgspec.structs.replace(monitor, held_by=unix_sockets.names(unix_sockets.clients(monitor.address, ears.pid)))


def storable(monitor: MonitorSocket) -> MonitorSocket:
    """Return the monitor in words that JSON can hold; a path that is no UTF-8 is told, but not connected to."""
    address = clean(monitor.address)
    reachable = monitor.reachable if address == monitor.address else ""
    return msgspec.structs.replace(monitor, address=address, reachable=reachable)
