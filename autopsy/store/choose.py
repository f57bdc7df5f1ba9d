"""Finds the one capture of the store that a word means."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from autopsy.errors import UsageError
from autopsy.store.entries import BUNDLE, StoredBundle
from autopsy.text import printable

LAST = "last"
LIKE = 0.5  # of difflib's ratio
LIST = "`autopsy list` shows what is stored"


def chosen(word: str, stored: Sequence[StoredBundle]) -> StoredBundle:
    """Return the capture that `last`, a bundle's name, how one begins, or a VM's name means: of a VM the newest.

    Raises:
        UsageError: it means none, or several.
    """
    if not stored:
        raise UsageError(printable(word), "nothing is stored", remedy="`autopsy capture TARGET` stores a capture")
    if word == LAST:
        return stored[-1]
    name = word.removesuffix(BUNDLE)
    for entry in reversed(stored):
        if name == entry.name or word == entry.vm:
            return entry
    begin = [entry for entry in stored if entry.name.startswith((name, f"autopsy-{name}"))]
    if len(begin) == 1:
        return begin[0]
    names = [entry.name for entry in begin] or _alike(name, stored)
    cause = f"{len(begin)} captures begin so" if begin else "no capture is stored by that name"
    alike = f"did you mean {' or '.join(names[:3])}? " if names else ""
    raise UsageError(printable(word), cause, remedy=f"{alike}{LIST}")


def _alike(name: str, stored: Sequence[StoredBundle]) -> list[str]:
    words = {word: entry.name for entry in stored for word in (entry.vm, entry.name)}
    matches = difflib.get_close_matches(name, words, n=3, cutoff=LIKE)
    return list(dict.fromkeys(words[match] for match in matches))
