"""The one Jinja environment: everything is escaped, and every unseen character shown, without a template asking."""

from __future__ import annotations

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from autopsy.report.visible import visible
from autopsy.resources import resource


def environment() -> Environment:
    """Return an environment whose templates cannot print what a guest chose in any form but as visible text."""
    return Environment(
        loader=FileSystemLoader(resource("templates"), encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )


def _finalize(value: object) -> object:
    """Show what cannot be seen. Markup is ours alone: it is made in one place, from a runbook."""
    if isinstance(value, Markup):
        return value
    if isinstance(value, str):
        return visible(value)
    return value
