"""The report as one HTML file."""

from __future__ import annotations

from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.evidence import Evidence
from autopsy.facts.gather import gather
from autopsy.facts.model import Facts
from autopsy.report import units
from autopsy.report.environment import environment
from autopsy.report.page import compose


def html(bundle: Evidence, *, kill: str = "") -> str:
    """Return the report of a bundle; `kill` is what happened to the VM after the bundle was sealed."""
    facts = gather(bundle)
    return render(bundle, facts, diagnose(facts), kill=kill)


def render(bundle: Evidence, facts: Facts, diagnosis: Diagnosis, *, kill: str = "") -> str:
    """Return the report of what was gathered from a bundle and diagnosed already."""
    page = compose(bundle, facts, diagnosis, kill)
    return environment().get_template("report.html").render(page=page, units=units)
