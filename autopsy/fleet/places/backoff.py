"""Tries again what a place may do a moment later: after longer every time, and never all hosts at once."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from autopsy.fleet.places.place import PlaceFailed

TRIES = 5
FIRST_SECONDS = 1.0
LONGEST_SECONDS = 30.0

T = TypeVar("T")


def waits(tries: int = TRIES, chance: Callable[[], float] = random.random) -> Iterator[float]:
    """Yield the seconds before the second try, the third and so on: anything up to a bound that doubles."""
    for number in range(tries - 1):
        yield chance() * min(LONGEST_SECONDS, FIRST_SECONDS * 2**number)


def patiently(
    work: Callable[[], T],
    *,
    tries: int = TRIES,
    say: Callable[[str], None] = lambda _: None,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Do something with a place, and do it again where the place did not answer or had no room.

    Raises:
        PlaceFailed: so many tries did not help.
        AutopsyError: as `work` raises it, at once.
    """
    for number, wait in enumerate(waits(tries), start=1):
        try:
            return work()
        except PlaceFailed as error:
            say(f"try {number} of {tries}: {error}; the next in {wait:.1f} s")
            sleep(wait)
    return work()
