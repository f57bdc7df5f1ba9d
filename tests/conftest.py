"""Fixtures that every test can use."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import lab

LABELS = ("7.2", "10.0.2", "10.0.2-debug", "11")


@pytest.fixture(params=LABELS)
def build(request: pytest.FixtureRequest) -> lab.Build:
    """Return every QEMU that we test with, one after the other."""
    return lab.build(request.param)


@pytest.fixture
def stock() -> lab.Build:
    """Return this distribution's QEMU."""
    return lab.build("7.2")


@pytest.fixture
def short() -> Iterator[Path]:
    """Return a folder whose path is short enough for a UNIX socket."""
    with lab.folder() as place:
        yield place


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heard() -> None:
    """Hear SIGINT even where a shell started the tests in the background: what we start would ignore it, too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """Fail the run when a process, a mount or a loop device of ours is left at its end."""
    tempfile.gettempdir()  # remembered here, so that pytest's own folders stay where they are
    run = Path(tempfile.mkdtemp(prefix="at-", dir="/var/tmp"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(run))
        yield
        assert lab.leftovers(run) == []
    shutil.rmtree(run)
