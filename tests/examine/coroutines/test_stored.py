"""Coroutines are stored as all evidence is, whatever their number, and read back with their stacks held once."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from autopsy.bundle.records import Coroutine, Frame
from autopsy.examine.coroutines import stored


def coroutine(address: int, *, depth: int = 3, why: str = "") -> Coroutine:
    numbers: dict[str, Any] = dict.fromkeys(
        ("stack", "stack_size", "pc", "sp", "entry", "entry_argument", "caller", "context", "locks_held"), 7
    )
    frames = tuple(Frame(pc=level, function="bdrv_co_preadv", line=level) for level in range(depth))
    return Coroutine(address=address, state="parked", frames=frames, why_unclear=why, **numbers)


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_the_text_is_that_of_any_other_evidence(count: int) -> None:
    several = [coroutine(number, depth=number % 3, why='a\n"b\\n') for number in range(count)]
    assert stored.as_text(several) == msgspec.json.format(msgspec.json.encode(several), indent=1) + b"\n"


def test_what_is_read_back_is_what_was_stored_and_shares_its_stacks() -> None:
    several = tuple(coroutine(number, depth=2 + number % 2) for number in range(10))
    back = stored.read_back(stored.as_text(several))
    assert back == several
    assert len({id(each.frames) for each in back}) == 2


@pytest.mark.parametrize("damaged", [b"", b"{}", b"[1]", b'[{"address": 1}]', b"[" * 100_000])
def test_what_is_no_list_of_coroutines_is_refused(damaged: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, RecursionError)):
        stored.read_back(damaged)
