"""Reads what stands beside a sealed bundle about the kill that came after it."""

from __future__ import annotations

from pathlib import Path

import msgspec

MOST = 1 << 20


class _When(msgspec.Struct, frozen=True):
    utc: str


class _Kill(msgspec.Struct, frozen=True):
    when: _When
    how: str


def killed(bundle: Path) -> str:
    """Return `<UTC>: <how>`, empty where nothing is written down."""
    try:
        with open(bundle.with_name(f"{bundle.name}.kill.json"), "rb") as stream:
            found = msgspec.json.decode(stream.read(MOST), type=_Kill)
    except (OSError, ValueError, msgspec.MsgspecError, RecursionError):
        return ""
    return f"{found.when.utc}: {found.how}"
