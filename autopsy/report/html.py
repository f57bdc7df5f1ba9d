"""The report as one HTML file."""

from __future__ import annotations

from autopsy.diagnose.verdict import diagnose
from autopsy.facts.evidence import Evidence
from autopsy.facts.gather import gather
from autopsy.report import units
from autopsy.report.environment import environment
from autopsy.report.page import compose


def html(bundle: Evidence, *, kill: str = "") -> str:
    """Return the report of a bundle; `kill` is what happened to the VM after the bundle was sealed."""
    facts = gather(bundle)
    page = compose(bundle, facts, diagnose(facts), kill)
    return environment().get_template("report.html").render(page=page, units=units)
