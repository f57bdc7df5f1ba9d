"""The report as one HTML file."""

from __future__ import annotations

from functools import cache

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup, escape

from autopsy import text
from autopsy.bundle.manifest import Clocks
from autopsy.compiled_templates import CompiledTemplates
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.evidence import Evidence
from autopsy.facts.gather import gather_facts
from autopsy.facts.model.facts import Facts
from autopsy.report import units
from autopsy.report.clock_text import calendar
from autopsy.report.page import compose, kill_badge, told_kill
from autopsy.report.runbook import load_pages
from autopsy.resources import resource, texts
from autopsy.text import visible

# As templates/report.html has it of a VM that was not.
NOT_KILLED = b'<p class="killed"><b>Killed:</b> no</p>'
NO_BADGE = b'<span class="badge killed">not killed</span>'


def html(bundle: Evidence, *, kill: str = "", seen: str = "") -> str:
    """Return the report of a bundle; `kill` is what happened to the VM after the bundle was sealed."""
    facts = gather_facts(bundle)
    return render(bundle, facts, diagnose(facts), kill=kill, seen=seen)


def render(bundle: Evidence, facts: Facts, diagnosis: Diagnosis, *, kill: str = "", seen: str = "") -> str:
    """Return the report of what was gathered from a bundle and diagnosed already."""
    page = compose(bundle, facts, diagnosis, kill, seen)
    return environment().get_template("report.html").render(page=page, units=units)


def with_kill(page: bytes, kill: str, began: Clocks) -> bytes:
    """Return a report that was rendered before the kill with what became of it; unchanged if it says so already."""
    kill_text = escape(visible(told_kill(kill, calendar(began)))).encode("utf-8", "replace")
    badge = escape(visible(kill_badge(kill, calendar(began)))).encode("utf-8", "replace")
    page = page.replace(NO_BADGE, b'<span class="badge killed">%s</span>' % badge, 1)
    return page.replace(NOT_KILLED, b'<p class="killed"><b>Killed:</b> %s</p>' % kill_text, 1)


def compile_templates() -> None:
    """Make the templates and the runbooks ready: whoever is forked from here need not."""
    for name in environment().list_templates():
        environment().get_template(name)
    load_pages()


@cache
def environment() -> Environment:
    """Return an environment whose templates cannot print what a guest chose in any form but as visible text."""
    return Environment(
        loader=DictLoader(texts("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
        bytecode_cache=CompiledTemplates(resource("templates"), (__file__, text.__file__)),
    )


def _finalize(value: object) -> object:
    """Show what cannot be seen. Markup is ours alone: it is made in one place, from a runbook."""
    if isinstance(value, Markup):
        return value
    if isinstance(value, str):
        return visible(value)
    return value
