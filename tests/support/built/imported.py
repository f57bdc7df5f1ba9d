"""Folders of imported evidence, made without a command line: what a paste leaves, and what is said of it."""

from __future__ import annotations

import os
from pathlib import Path

from autopsy.bundle.reader import open_bundle
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from autopsy.facts.model.facts import Facts
from autopsy.files import private
from autopsy.incoming.bundle import Given, Typed, lay_out
from autopsy.incoming.reading import read_evidence
from autopsy.incoming.stored import stored
from autopsy.linux import clocks

NOWHERE = -1  # no test of these has a core


def facts_of(text: str, folder: Path) -> Facts:
    """Return the facts of one pasted text."""
    folder.mkdir(parents=True, exist_ok=True)
    given = folder / "given.txt"
    given.write_text(text)
    descriptor = os.open(given, os.O_RDONLY)
    try:
        material = read_evidence([descriptor], NOWHERE)
        made = folder / "bundle"
        os.close(private.make(made))
        lay_out(made, [Given("given.txt", descriptor)], material, stored(material.paste), Typed(clocks.now(), ()))
    finally:
        os.close(descriptor)
    return gather_facts(open_bundle(made))


def diagnosis_of(text: str, folder: Path) -> Diagnosis:
    """Return what is said of one pasted text."""
    return diagnose(facts_of(text, folder))
