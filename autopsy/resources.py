"""Finds the templates and runbooks: inside the package once installed, beside it in a checkout."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def resource(folder: str) -> Path:
    """Return the folder `templates` or `runbooks`."""
    inside = PACKAGE / folder
    return inside if inside.is_dir() else PACKAGE.parent / folder
