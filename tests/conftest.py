"""Fixtures that every test can use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import lab
import pytest

LABELS = ("7.2", "10.0.2", "10.0.2-debug")


@pytest.fixture(params=LABELS)
def build(request: pytest.FixtureRequest) -> lab.Build:
    """Return every QEMU that we test with, one after the other."""
    return lab.build(request.param)


@pytest.fixture
def stock() -> lab.Build:
    """Return this distribution's QEMU."""
    return lab.build("7.2")


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder whose path is short enough for a UNIX socket."""
    del tmp_path_factory
    with lab.folder() as place:
        yield place


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """Fail the run when a QEMU, a mount or a loop device of ours is left at its end."""
    yield
    assert lab.leftovers() == []
