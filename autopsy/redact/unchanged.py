"""Tells at a glance of a large file that it has nothing to be hidden: most of what a bundle holds is numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from autopsy.bundle.sections import Section
from autopsy.redact.pseudonyms import Pseudonyms

LARGE = 64 << 10  # bytes: of a smaller file no copy is saved
MOST_PAIRS = 65_536  # that differ: a file with more is gone through as any other
OF_A_TASK = re.compile(r"task/\d{1,10}/(?:stat|status|syscall|wchan|stack|schedstat|comm)")
PAIR = re.compile(r'"([^"]*)"(?:(\s*:)\s*(?:"([^"]*)")?)?')
SECRET_KINDS = frozenset({"qom-type", "qom_type"})


def tasks_are_plain(sections: Iterable[Section], hide: Pseudonyms) -> bool:
    """Return whether nothing of what the kernel told of the threads has to be hidden.

    Each line is looked at once, in the order in which they stand: the threads of a process are much alike. How a thread
    is called is not looked at: QEMU names its own threads.
    """
    parts = (section.data for section in sections if is_of_a_task(section) and not section.name.endswith("/comm"))
    try:
        text = b"\n".join(parts).decode()
    except UnicodeDecodeError:
        return False
    return hide.is_plain(text)


def is_of_a_task(section: Section) -> bool:
    """Return whether a section tells of one thread, and is called so and no otherwise."""
    return not section.error and OF_A_TASK.fullmatch(section.name) is not None


def json_is_plain(data: bytes, hide: Pseudonyms, kept: frozenset[str]) -> bool:
    """Return whether nothing in a large file has to be hidden; "no" may also mean that this cannot be told quickly.

    Each pair of a key and a text is looked at once; what is no such pair, and an object of QEMU's, takes the long way.
    The values of the keys in `kept` are of a closed vocabulary.
    """
    if len(data) < LARGE or b"\\" in data:
        return False
    try:
        text = data.decode()
        msgspec.json.decode(data, type=msgspec.Raw)  # between the texts there is nothing but JSON's own signs
    except (UnicodeDecodeError, msgspec.DecodeError):
        return False
    pairs = dict.fromkeys(PAIR.findall(text))
    if len(pairs) > MOST_PAIRS:
        return False
    return all(
        bool(colon)
        and key not in SECRET_KINDS
        and hide.key(key) == key
        and (key in kept or (not value.startswith("json:") and hide.value(key, value) == value))
        for key, colon, value in pairs
    )
