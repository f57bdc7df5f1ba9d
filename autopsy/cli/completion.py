"""What the shell completes: VMs, stored captures, scenarios, steps, formats. Quick: it is waited for at every Tab."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

BUNDLE = ".tar.zst"
FORMATS = (
    ("html", "one file that opens anywhere"),
    ("md", "a post-mortem draft"),
    ("bug", "for QEMU's tracker, redacted"),
    ("json", "for programs"),
    ("schema", "of the json"),
)
QUESTIONS = (
    ("top", "what is stuck the most often"),
    ("similar", "what is most like a bundle"),
    ("since-upgrade", "what is gone, new or still there since a version of QEMU"),
    ("unknown", "what no signature names"),
    ("errors", "what could not be diagnosed"),
)
AGES = ("12h", "7d", "30d", "12w")


def vms(incomplete: str) -> list[tuple[str, str]]:
    """Return the words that mean this host's VMs, each with its process."""
    from autopsy.target.names import names_of_vms

    return _beginning(incomplete, ((word, f"process {pid}") for word, pid in names_of_vms()))


def captures(incomplete: str) -> list[tuple[str, str]]:
    """Return the names of stored captures, and `last`."""
    from autopsy.store.entries import entries

    try:
        stored = entries()
    except OSError:
        stored = ()
    names = ((entry.name, f"{entry.size / 1e6:.1f} MB") for entry in reversed(stored))
    return _beginning(incomplete, (*((("last", "the newest"),) if stored else ()), *names))


def bundles(incomplete: str) -> list[str]:
    """Return the bundles and folders below what is typed, and those of the store where nothing is."""
    from autopsy.store.entries import entries

    paths = [path for path in _paths(incomplete) if path.endswith((BUNDLE, "/"))]
    if not incomplete:
        try:
            paths += [str(entry.bundle) for entry in reversed(entries())]
        except OSError:
            return paths
    return paths


def stored_or_bundles(incomplete: str) -> list[tuple[str, str]]:
    """Return names of stored captures, then paths."""
    here = ((path, "") for path in _paths(incomplete) if path.endswith((BUNDLE, "/")))
    return [*captures(incomplete), *here]


def steps(incomplete: str) -> list[str]:
    """Return the steps of a capture."""
    from autopsy.bundle.layout import STEPS

    return [step for step in STEPS if step.startswith(incomplete)]


def scenarios(incomplete: str) -> list[tuple[str, str]]:
    """Return the drill's scenarios."""
    from autopsy.drill.scenarios import SCENARIOS
    from autopsy.drill.stored import STORED_DRILLS

    return _beginning(incomplete, ((scenario.name, scenario.description) for scenario in (*SCENARIOS, *STORED_DRILLS)))


def formats(incomplete: str) -> list[tuple[str, str]]:
    """Return the formats of a report."""
    return _beginning(incomplete, FORMATS)


def questions(incomplete: str) -> list[tuple[str, str]]:
    """Return the named questions of an index."""
    return _beginning(incomplete, QUESTIONS)


def ages(incomplete: str) -> list[str]:
    """Return some ages."""
    return [age for age in AGES if age.startswith(incomplete)]


def _beginning(incomplete: str, words: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(word, meaning) for word, meaning in words if word.startswith(incomplete)]


def _paths(incomplete: str) -> Iterator[str]:
    folder, _, begin = incomplete.rpartition("/")
    top = f"{folder}/" if "/" in incomplete else ""
    try:
        names = sorted(os.scandir(top or "."), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in names:
        if entry.name.startswith(begin) and (begin or not entry.name.startswith(".")):
            yield f"{top}{entry.name}{'/' if entry.is_dir() else ''}"
