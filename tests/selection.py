"""Chooses which live tests `make test` runs: each on one of its QEMUs, while `make soak` runs it on all of them."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TypeVar

Test = TypeVar("Test")

LABELS = ("7.2", "10.0.2", "10.0.2-debug", "11")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One test by its id. Those of one `family` differ by their QEMU alone; it is None for one that has no QEMU."""

    test: str
    marks: frozenset[str] = frozenset()
    family: Hashable = None


def left_to_the_soak(candidates: Iterable[Candidate]) -> frozenset[str]:
    """Return the tests that are more of the same.

    Of a family of live tests one stays, by a number that its names make: so each keeps its QEMU, and every QEMU has its
    share. Those marked `every_qemu` all stay; those marked `soak` all go.
    """
    families = defaultdict(list)
    more = set()
    for each in candidates:
        if "soak" in each.marks:
            more.add(each.test)
        elif "live" in each.marks and "every_qemu" not in each.marks and each.family is not None:
            families[each.family].append(each.test)
    for tests in families.values():
        more |= set(tests) - {_one_of(sorted(tests))}
    return frozenset(more)


def among_each_other(files: Sequence[list[Test]], is_live: Callable[[Test], bool]) -> list[Test]:
    """Return the tests of all files with those that wait for a QEMU and those that compute in turn.

    Two live files at once leave the second core to one that computes, and what comes last is short: several workers end
    together.
    """
    live = [file for file in files if any(map(is_live, file))]
    others = [file for file in files if not any(map(is_live, file))]
    pairs = zip_longest(live, others, fillvalue=[])
    return [test for pair in pairs for file in pair for test in file]


def _one_of(tests: list[str]) -> str:
    return tests[zlib.crc32(" ".join(tests).encode()) % len(tests)]
