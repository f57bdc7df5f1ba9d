"""Reads JSON that a hostile process may have written: a wrong type is an empty value, never an exception."""

from __future__ import annotations

from typing import Any


def mapping(value: object) -> dict[str, Any]:
    """Return the value if it is an object."""
    return value if isinstance(value, dict) else {}


def sequence(value: object) -> list[Any]:
    """Return the value if it is an array."""
    return value if isinstance(value, list) else []


def text(value: object) -> str:
    """Return the value if it is a string, at most 4,096 characters of it."""
    return value[:4096] if isinstance(value, str) else ""


def number(value: object) -> int:
    """Return the value if it is a whole number, else 0."""
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
