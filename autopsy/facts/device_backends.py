"""The programs that a device of the VM hands its work to: vhost-user back ends, the software TPM."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from autopsy.bundle import layout
from autopsy.facts.cite import Cite, Fact, Known, Unknown
from autopsy.facts.command_line import CommandLine, Options, string
from autopsy.facts.model.facts import Helper, SocketFact
from autopsy.facts.untrusted import mapping, sequence, text

VHOST_USER = "vhost-user"
DISCONNECTED = "disconnected:"
NOT_ASKED = Unknown(layout.evidence(layout.QUERY_STATUS, layout.QMP), "query-chardev was not asked")


def gather_back_ends(
    line: CommandLine, sockets: Fact[tuple[SocketFact, ...]], chardevs_told: Fact[Any] = NOT_ASKED
) -> tuple[Helper, ...]:
    """Return each helper that the command line names, with the sockets that lead to it.

    `chardevs_told` is QEMU's answer to query-chardev.
    """
    connected = sockets.value if isinstance(sockets, Known) else ()
    chardevs = {string(chardev, "id"): chardev for chardev in line.chardevs}
    helpers = []
    for kind, device, model, name in _asked_for(line):
        chardev = chardevs.get(name)
        if chardev is None:
            continue
        leading = tuple(end for end in connected if _leads_to(end, chardev))
        helpers.append(
            Helper(
                kind=kind,
                device=device,
                model=model,
                address=string(chardev, "path") or f"{string(chardev, 'host')}:{string(chardev, 'port')}",
                sockets=leading,
                connected=_connected(chardevs_told, name),
                cite=Cite(line.cite.file, line.cite.line, f"-chardev id={name}"),
            )
        )
    return tuple(helpers)


def _connected(chardevs: Fact[Any], name: str) -> Fact[bool]:
    """Return whether a chardev is connected: QEMU writes so before the address of one that is not."""
    if isinstance(chardevs, Unknown):
        return chardevs
    for chardev in map(mapping, sequence(chardevs.value)):
        if text(chardev.get("label")) == name:
            address = text(chardev.get("filename"))
            cite = Cite(chardevs.cite.file, chardevs.cite.line, f"chardev {name}: {address}")
            return Known(value=not address.startswith(DISCONNECTED), cite=cite)
    return Unknown(chardevs.cite.file, f"query-chardev does not list {name}")


def _asked_for(line: CommandLine) -> Iterator[tuple[str, str, str, str]]:
    """Yield kind, device, model and chardev of every device that a helper serves."""
    for device in line.devices:
        model = string(device, "driver")
        if model.startswith(VHOST_USER) and string(device, "chardev"):
            yield VHOST_USER, string(device, "id") or model, model, string(device, "chardev")
    for tpm in line.tpmdevs:
        if string(tpm, "type") == "emulator":
            yield "swtpm", string(tpm, "id"), "tpm-emulator", string(tpm, "chardev")


def _leads_to(socket: SocketFact, chardev: Options) -> bool:
    if socket.state in {"LISTEN", "UNCONN"}:
        return False
    if path := string(chardev, "path"):
        # The other end may have bound the socket by another spelling of its path.
        file = "/" + path.rpartition("/")[2]
        return any(name == path or ("/" + name).endswith(file) for name in (socket.remote, socket.local) if name)
    port = string(chardev, "port")
    return bool(port) and port.isdecimal() and any(e.endswith(f":{port}") for e in (socket.remote, socket.local))
