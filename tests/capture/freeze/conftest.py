"""Fixtures of the tests of freezing."""

from __future__ import annotations

import pytest

from support import freezing


@pytest.fixture(params=[pytest.param(False, id="stopped"), pytest.param(True, id="walked", marks=pytest.mark.soak)])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Freeze as where the kernel lets nobody walk its threads, then as where it does."""
    monkeypatch.setattr(freezing, "walks", request.param)
