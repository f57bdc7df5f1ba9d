"""Finds QEMU's command lines in what was given: in a process list, a log of libvirt's, or pasted alone."""

from __future__ import annotations

import shlex
from dataclasses import field
from itertools import pairwise

from autopsy.bundle.manifest import Manager
from autopsy.dataclass import dataclass
from autopsy.incoming.material import FoundMachine

MOST = 1 << 16  # characters of one command line
MOST_MACHINES = 1_000
BINARIES = ("qemu-kvm", "/kvm", "qemu-system-")
FOLDERS: tuple[tuple[Manager, str], ...] = (
    ("proxmox", "/run/qemu-server/"),
    ("libvirt", "/lib/libvirt/qemu/"),
    ("libvirt", "/run/libvirt/qemu/"),
    ("libvirt", "/run/kubevirt-private/libvirt/qemu/"),
)
TREE = "├└│─ \t`-|+"


@dataclass(slots=True)
class CommandLines:
    """The command lines met so far, each VM's once."""

    found: dict[tuple[str, int], FoundMachine] = field(default_factory=dict)
    pending: str = ""

    def feed(self, line: str) -> bool:
        """Take one line; return whether it holds a command line, or a part of one."""
        if line.endswith(" \\") and len(self.pending) < MOST:
            self.pending += line[:-1]
            return True
        whole, self.pending = (self.pending + line)[:MOST], ""
        if not any(binary in whole for binary in BINARIES) or " -" not in whole:
            return False
        return self._take(whole)

    def take_words(self, words: tuple[str, ...], pid: int = 0) -> bool:
        """Take a command line that is split already."""
        if not words or not is_qemu(words[0]) or len(words) < 3 or len(self.found) >= MOST_MACHINES:
            return False
        name = _name(words)
        machine = FoundMachine(name=name, pid=pid, arguments=words, also=_also(words), manager=_manager(words))
        self.found.setdefault((name, pid), machine)
        return True

    def _take(self, whole: str) -> bool:
        words = whole.split(" ")
        for place, word in enumerate(words):
            following = next((word for word in words[place + 1 : place + 9] if word), "")
            if is_qemu(word.lstrip(TREE)) and following.startswith("-"):
                return self.take_words(_split(" ".join(words[place:]).lstrip(TREE)), _pid(words[: min(place, 40)]))
        return False


def is_qemu(word: str) -> bool:
    """Tell whether a path or name is that of a QEMU's binary."""
    name = word.rpartition("/")[2]
    return name.startswith("qemu-system-") or name in {"qemu-kvm", "kvm", "qemu-kvm-ma"}


def _split(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError:  # a quote that was never closed: somebody cut it there
        return tuple(text.split())


def _pid(words: list[str]) -> int:
    for word in [word for word in words if word][:4]:
        digits = word.strip(TREE)
        if digits.isascii() and digits.isdecimal() and 1 < int(digits[:10]) < 1 << 31:
            return int(digits[:10])
    return 0


def _name(words: tuple[str, ...]) -> str:
    for option, value in pairwise(words):
        if option in {"-name", "--name"}:
            for part in value.split(","):
                key, equals, text = part.partition("=")
                if not equals:
                    return part
                if key == "guest":
                    return text
    return ""


def _also(words: tuple[str, ...]) -> tuple[str, ...]:
    """Return the VMID that Proxmox VE gives as -id, and the uuid."""
    return tuple(value for option, value in pairwise(words) if option in {"-id", "-uuid"} and value)


def _manager(words: tuple[str, ...]) -> Manager:
    """Return who started it: each manager has its sockets in a folder of its own."""
    for manager, folder in FOLDERS:
        if any(folder in word for word in words):
            return manager
    return "process"
