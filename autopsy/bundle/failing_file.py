"""The record of a file that the VM has open, and that tells every question of an error at once."""

from __future__ import annotations

import msgspec


class FailingFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file by its path, and the name of the error that a stat(2) of it ends with (ENOTCONN: its server is gone)."""

    path: str
    error: str
