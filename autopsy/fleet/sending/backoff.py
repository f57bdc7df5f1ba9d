"""How long to wait before each new try: longer every time, and never all hosts at once."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

TRIES = 5
FIRST_SECONDS = 1.0
LONGEST_SECONDS = 30.0


def waits(tries: int = TRIES, chance: Callable[[], float] = random.random) -> Iterator[float]:
    """Yield the seconds before the second try, the third and so on: anything up to a bound that doubles."""
    for number in range(tries - 1):
        yield chance() * min(LONGEST_SECONDS, FIRST_SECONDS * 2**number)
