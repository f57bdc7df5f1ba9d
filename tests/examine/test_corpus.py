"""Every input that fuzzing has kept is read again, or refused in our own words."""

from __future__ import annotations

from pathlib import Path

import fuzz
import pytest


@pytest.mark.parametrize("reader", fuzz.READERS)
def test_what_fuzzing_found_once_is_harmless(reader: str) -> None:
    read = fuzz.READERS[reader]()
    kept = sorted(Path(fuzz.CORPUS, reader).iterdir()) if Path(fuzz.CORPUS, reader).is_dir() else []
    for each in kept:
        read(each.read_bytes())
    read(b"")
