"""Takes out of a text what tells whose machine it was: names, paths, addresses, secrets."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import field

from autopsy.bundle.manifest import Manifest
from autopsy.dataclass import dataclass
from autopsy.facts.cite import Known
from autopsy.facts.model.facts import Facts
from autopsy.redact import secrets
from autopsy.redact.patterns import OPAQUE
from autopsy.redact.secrets import without_secrets
from autopsy.text import visible

# What every installation has says nothing about this one.
COMMON = (
    *("/usr/", "/lib", "/bin/", "/sbin/", "/proc/", "/sys/", "/build/", "/etc/", "/memfd:"),
    *("/machine/peripheral", "/machine/unattached/"),  # QEMU's own tree of objects: no file
    *("/dev/kvm", "/dev/null", "/dev/vhost", "/dev/loop", "/dev/shm/", "/dev/pts/"),  # noqa: S108 - compared, never opened
)
# Names of somebody or something, which a stranger needs no more than a secret.
IDENTITY = re.compile(
    r"(?P<key>\b(?:data|user|username|serial|uuid|host|hostname|server\.host|mac|smbios|wwn|iqn|initiator-name"
    r"|export|pool|image|namespace)\s*=\s*)(?P<value>[^,\s]+)",
    re.IGNORECASE,
)
JSON_IDENTITY = re.compile(
    r'(?P<key>"(?:data|user|username|serial|uuid|host|hostname|mac|wwn|initiator-name|export|pool|image|namespace)"'
    r'\s*:\s*)"(?:[^"\\]|\\.)*"',
    re.IGNORECASE,
)
URL = re.compile(r"\b([a-z][a-z0-9+]{1,15})://[^\s,'\")]*[^\s,'\"):.;]")
MAC = re.compile(r"\b[0-9a-fA-F]{2}(?:[:-][0-9a-fA-F]{2}){5}\b")
UUID = re.compile(r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b")
IPV4 = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?::\d{1,5})?(?![\d.])")
IPV6 = re.compile(r"(?<![\w:])[0-9a-fA-F]{0,4}(?::[0-9a-fA-F]{0,4}){2,7}(?![\w:])")
PATH = re.compile(r"(?<![\w.%<>/-])/(?:[\w.@+:%~=-]+/)*[\w.@+:%~=-]*[\w@+%~=-]")  # a full stop ends a sentence
ABSTRACT = re.compile(r"(?<!\w)@[\w./-]{3,}")
SHORTEST_NAME = 3  # a VM called `a` would take every a out of the text


@dataclass(slots=True)
class Redaction:
    """Replaces the same thing by the same word everywhere, so that what belongs together can still be seen."""

    names: dict[str, str]
    known_paths: tuple[str, ...] = ()
    _paths: dict[str, str] = field(default_factory=dict)

    def text(self, text: str) -> str:
        """Return a text without whose it was, and with its unseen characters made visible."""
        text = visible(without_secrets(text))
        text = URL.sub(lambda match: f"{match[1]}://SERVER", text)
        for path in self.known_paths:  # these may hold spaces, which no pattern can tell from the end of a path
            if path in text:
                text = re.sub(rf"(?<![\w.]){re.escape(path)}(?!\w)", self._path(path), text)
        text = secrets.IQN.sub("IQN", secrets.WWN.sub("WWN", secrets.EMAIL.sub("EMAIL", text)))
        text = UUID.sub("UUID", MAC.sub("MAC", text))
        text = IPV6.sub(_address, IPV4.sub("ADDRESS", text))
        text = JSON_IDENTITY.sub(lambda match: f'{match["key"]}"REDACTED"', text)
        text = IDENTITY.sub(lambda match: f"{match['key']}REDACTED", text)
        text = OPAQUE.sub(lambda match: match[0] if match[0].startswith("_Z") else "OPAQUE", text)
        text = PATH.sub(lambda match: self._path(match[0]), text)
        text = ABSTRACT.sub("@SOCKET", text)
        for name, word in self.names.items():
            text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", word, text)
        return text

    def _path(self, path: str) -> str:
        if path.startswith(COMMON):
            return path
        if path not in self._paths:
            ending = re.search(r"\.[A-Za-z0-9]{1,6}$", path)
            place = "/dev/" if path.startswith("/dev/") else "/PATH/"
            self._paths[path] = f"{place}{len(self._paths) + 1}{ending[0] if ending else ''}"
        return self._paths[path]


def _address(match: re.Match[str]) -> str:
    try:
        ipaddress.ip_address(match[0])
    except ValueError:  # a time of day, a PCI address
        return match[0]
    return "ADDRESS"


def redaction(manifest: Manifest, facts: Facts) -> Redaction:
    """Return a redaction that knows this host's and this VM's name, and the paths that the evidence tells of."""
    names = {manifest.host.name: "HOST", manifest.target.name: "VM"}
    plain = {visible(name): word for name, word in names.items()}
    return Redaction(
        {name: word for name, word in plain.items() if len(name) >= SHORTEST_NAME}, _paths(manifest, facts)
    )


def _paths(manifest: Manifest, facts: Facts) -> tuple[str, ...]:
    """Return every path outside of the system that is known as one, longest first."""
    disks = facts.disks.value if isinstance(facts.disks, Known) else ()
    files = {node.filename for disk in disks for node in disk.nodes}
    files |= (
        {descriptor.target for descriptor in facts.descriptors.value} if isinstance(facts.descriptors, Known) else set()
    )
    files |= {mount.path for mount in facts.host.mounts.value} if isinstance(facts.host.mounts, Known) else set()
    files |= {mount.path for mount in facts.fuse.value} if isinstance(facts.fuse, Known) else set()
    if isinstance(facts.sockets, Known):
        files |= {end for socket in facts.sockets.value for end in (socket.local, socket.remote)}
    files |= {monitor.address for monitor in manifest.target.monitors}
    paths = {visible(path) for path in files if path.startswith("/") and len(path) > SHORTEST_NAME}
    return tuple(sorted((path for path in paths if not f"{path}/".startswith(COMMON)), key=len, reverse=True))
