"""Reads what a runbook advises: its own first lines are the next steps of a diagnosis."""

from __future__ import annotations

import re
from functools import cache

from autopsy.dataclass import dataclass
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.resources import texts

NAME = re.compile(r"[a-z0-9-]{1,80}")
UNKNOWN = "unknown"
CONFIRM, RELIEVE, RECOVER = "Confirm by hand", "Immediate relief that destroys no evidence", "Recovery"
LOST = "What a kill makes unknowable"
COMMANDS = "Commands"


@dataclass(frozen=True, slots=True)
class RunbookSteps:
    """Next steps (confirm, relieve, recover), and the questions that only the living process can answer.

    The word PID stands for the VM's; nothing else is filled in, because names are chosen by strangers and the steps are
    pasted into shells.
    """

    steps: tuple[str, ...]
    lost: tuple[str, ...]


@cache
def text(signature: str) -> str:
    """Return the runbook of a signature as Markdown, empty where there is none."""
    return texts("runbooks").get(f"{signature}.md", "") if NAME.fullmatch(signature) else ""


@cache
def advice(signature: str) -> RunbookSteps:
    """Return what the runbook of a signature advises; that of `unknown` where it has none."""
    written = written_for(signature)
    steps = (lines(written, section)[:1] for section in (CONFIRM, RELIEVE, RECOVER))
    return RunbookSteps(tuple(line for first in steps for line in first), lines(written, LOST))


def cure(diagnosis: Diagnosis) -> str:
    """Return what to do instead of a kill: the command for this VM, else the runbook's own words."""
    first = next((step for step in diagnosis.advice if step.when == "now"), None)
    if first is not None:
        return f"`{first.command}` ({first.why})"
    return next(iter(lines(written_for(diagnosis.signature), RELIEVE)), "")


def written_for(signature: str) -> str:
    """Return the runbook of a signature, that of `unknown` where it has none."""
    return text(signature) or text(UNKNOWN)


def without_commands(written: str) -> str:
    """Return a runbook without its commands, which have slots: whoever shows it has them filled elsewhere."""
    before, _, rest = written.partition(f"## {COMMANDS}\n\n")
    _, _, after = rest.partition("\n\n## ")
    return f"{before}## {after}" if after else written


def lines(written: str, section: str) -> tuple[str, ...]:
    """Return the items of one section's list."""
    _, _, rest = written.partition(f"## {section}\n\n")
    body, _, _ = rest.partition("\n\n## ")
    return tuple(line.removeprefix("- ") for line in body.strip().splitlines())
