"""Finds the templates and runbooks: inside the package once installed, beside it in a checkout."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def resource(folder: str) -> Path:
    """Return the folder `templates` or `runbooks`, or that of a case that the package brings along."""
    inside = PACKAGE / folder
    return inside if inside.is_dir() else PACKAGE.parent / folder


@cache
def texts(folder: str) -> Mapping[str, str]:
    """Return every file of `templates` or `runbooks` by its name: whoever is confined later cannot read them then."""
    return {file.name: file.read_text("utf-8") for file in sorted(resource(folder).iterdir()) if file.is_file()}
