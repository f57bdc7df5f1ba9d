"""Turns a runbook, which is ours, into HTML that fits into the report."""

from __future__ import annotations

from markdown_it import MarkdownIt
from markupsafe import Markup

from autopsy.diagnose import runbooks

DEEPER = 2  # a runbook's title becomes an h3 below the section's own


def runbook(signature: str) -> Markup | None:
    """Return the runbook of a signature, None where there is none yet."""
    text = runbooks.without_commands(runbooks.text(signature))
    if not text:
        return None
    reader = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    tokens = reader.parse(text)
    for token in tokens:
        if token.type in {"heading_open", "heading_close"}:
            token.tag = f"h{min(6, int(token.tag[1]) + DEEPER)}"
        if token.type == "fence":
            token.info = ""
    # Not a guest's text, but a file of this package, read with raw HTML switched off.
    return Markup(reader.renderer.render(tokens, reader.options, {}))  # noqa: S704 - as the line above says
