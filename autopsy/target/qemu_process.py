"""What one process tells of itself, taken apart once for all who ask."""

from __future__ import annotations

from autopsy.dataclass import dataclass
from autopsy.linux.batch import Unanswered
from autopsy.target.command_line import Option, last
from autopsy.target.guest_ram import UNTOLD, sizes
from autopsy.target.identity import Binary


@dataclass(frozen=True, slots=True)
class QemuProcess:
    """What one process tells of itself; each part is Unanswered where the kernel let us hang or refused.

    `options` are the arguments taken apart as its program does that, None where they are not known. `named` tells
    whether it is named like a QEMU.
    """

    binary: Binary | Unanswered
    arguments: tuple[str, ...] | Unanswered
    options: tuple[Option, ...] | None
    named: bool

    def option(self, name: str) -> str:
        """Return the argument of an option, the last one's where it was given twice, empty where it is not known."""
        return last(self.options or (), name)

    @property
    def ram_sizes(self) -> tuple[int, ...]:
        """Return the sizes of guest RAM that its options tell; where they are not known, more than there can be."""
        return UNTOLD if self.options is None else sizes(self.options)


NOT_ASKED = QemuProcess(Unanswered("not asked"), Unanswered("not asked"), None, named=False)


def is_qemu(process: QemuProcess) -> bool:
    """Return whether a process runs a system emulator or a storage daemon; by its name where its binary is not read."""
    return process.named if isinstance(process.binary, Unanswered) else bool(process.binary.qemu_version)
