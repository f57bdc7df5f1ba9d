"""A runbook's HTML is that of a whole CommonMark parser, and nothing in it is taken for HTML."""

from __future__ import annotations

from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markupsafe import Markup

from autopsy.report import runbook
from autopsy.resources import resource


def commonmark(text: str) -> str:
    """Return what a whole parser makes of it, with headings as deep as the report has them."""
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = reader.parse(text)
    for token in tokens:
        if token.type in {"heading_open", "heading_close"}:
            token.tag = f"h{min(runbook.LOWEST, int(token.tag[1]) + runbook.DEEPER)}"
    return str(reader.renderer.render(tokens, reader.options, {}))


def same_quotes(html: Markup) -> str:
    return str(html).replace("&#39;", "'").replace("&#34;", "&quot;")


@pytest.mark.parametrize("file", sorted(resource("runbooks").glob("*.md")), ids=lambda file: file.stem)
def test_every_runbook_is_read_as_commonmark_has_it(file: Path) -> None:
    text = file.read_text("utf-8")
    assert same_quotes(runbook.html(text)) == commonmark(text)


@pytest.mark.parametrize(
    "text",
    [
        "# a\n\n`b`\n\nc\nd\n",
        "## a\n- b\n- c `d *e*` f\n",
        "a **b c** `**d**` e\n",
        "1. a\n2. b\n",
        "a\n\n    $ b <c>\n    d\n\ne\n",
        "- a\n  b\n- c\n",
        "a `b\n",
        "<script>&amp;\"'</script>\n".replace("&amp;", "& "),
    ],
)
def test_what_runbooks_are_written_in_is_read_as_commonmark_has_it(text: str) -> None:
    assert same_quotes(runbook.html(text)) == commonmark(text)


def test_a_signature_without_a_runbook_has_none() -> None:
    assert runbook.runbook("no-such-signature") is None
    assert "<h3>" in str(runbook.runbook("aio-in-kernel"))
