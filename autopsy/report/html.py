"""The report as one HTML file."""

from __future__ import annotations

from autopsy.bundle.reader import Bundle
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather
from autopsy.report.environment import environment


def html(bundle: Bundle, *, kill: str = "") -> str:
    """Return the report of a bundle; `kill` is what happened to the VM after the bundle was sealed."""
    facts = gather(bundle)
    diagnosis = diagnose(facts)
    page = environment().get_template("report.html")
    return page.render(facts=facts, diagnosis=diagnosis, manifest=bundle.manifest, kill=kill)
