"""Some whole pages of the process, and where they lie in it."""

from __future__ import annotations

from typing import Protocol

from autopsy.dataclass import dataclass


class Present(Protocol):
    """A run of pages that the process has."""

    @property
    def address(self) -> int:
        """Return where it begins."""

    @property
    def end(self) -> int:
        """Return the address after the last byte."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some whole pages of the process, wherever we keep them."""

    address: int
    data: memoryview

    @property
    def end(self) -> int:
        """Return the address after the last byte."""
        return self.address + len(self.data)
