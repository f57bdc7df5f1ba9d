"""Turns runbooks, which are ours, into HTML that fits into the report: once, and then kept as templates are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec

from jinja2 import DictLoader, Environment, Template
from jinja2.ext import Extension
from markupsafe import Markup

from autopsy.compiled_templates import CompiledTemplates
from autopsy.diagnose import runbooks
from autopsy.resources import resource, texts

DEEPER = 2  # a runbook's title becomes an h3 below the section's own
LOWEST = 6
PAGES = "runbooks"
PARSER = "markdown_it"


class Pages(Extension):
    """Makes one template of all runbooks when it is compiled: a block of HTML each.

    To load a Markdown parser and to read a page by it takes a twentieth of a capture.
    """

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:  # noqa: ARG002 - Jinja's
        """Return the template's text, given the runbooks as JSON."""
        return "".join(_blocks(json.loads(source)))


def runbook(signature: str) -> Markup | None:
    """Return the runbook of a signature, None where there is none yet."""
    pages = load_pages()
    block = pages.blocks.get(_block_name(signature)) if runbooks.text(signature) else None
    # Not a guest's text, but a file of this package, read with raw HTML switched off.
    return Markup("".join(block(pages.new_context()))) if block else None  # noqa: S704 - as the line above says


@cache
def load_pages() -> Template:
    """Return the template of all runbooks: whoever is confined later can neither read nor keep it."""
    written = {name.removesuffix(".md"): text for name, text in texts("runbooks").items() if name.endswith(".md")}
    source = json.dumps({name: runbooks.without_commands(text) for name, text in written.items()})
    parser = find_spec(PARSER)
    made_by = (__file__, *((parser.origin,) if parser and parser.origin else ()))
    environment = Environment(
        loader=DictLoader({PAGES: source}),
        autoescape=True,
        auto_reload=False,
        extensions=[Pages],
        bytecode_cache=CompiledTemplates(resource("runbooks"), made_by),
    )
    return environment.get_template(PAGES)


def _blocks(written: dict[str, str]) -> Iterator[str]:
    from markdown_it import MarkdownIt  # noqa: PLC0415 - only where the kept template does not do

    reader = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    for name, text in written.items():
        tokens = reader.parse(text)
        for token in tokens:
            if token.type in {"heading_open", "heading_close"}:
                token.tag = f"h{min(LOWEST, int(token.tag[1]) + DEEPER)}"
            if token.type == "fence":
                token.info = ""
        page = reader.renderer.render(tokens, reader.options, {})
        yield f"{{% block {_block_name(name)} %}}{{% raw %}}{page}{{% endraw %}}{{% endblock %}}"


def _block_name(signature: str) -> str:
    return signature.replace("-", "_")
