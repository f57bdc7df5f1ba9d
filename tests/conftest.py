"""Fixtures that every test can use."""

from __future__ import annotations

import fcntl
import shutil
import signal
import tempfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from selection import LABELS, Candidate, among_each_other, left_to_the_soak
from support import lab

# How long an example takes is the machine's matter. What CI=true asks of hypothesis beside that stays.
settings.register_profile(
    "on any machine", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("on any machine")

HOUSE = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave to `make soak` what is more of the same, but for a test that was asked for by its name."""
    items[:] = among_each_other([list(each) for _, each in groupby(items, key=lambda item: item.path)], _is_live)
    if lab.SOAK or any("::" in word for word in config.args):
        return
    left = left_to_the_soak(map(_candidate, items))
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in left])
    items[:] = [item for item in items if item.nodeid not in left]


def _is_live(item: pytest.Item) -> bool:
    return item.get_closest_marker("live") is not None


def _candidate(item: pytest.Item) -> Candidate:
    params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    others = {name: value for name, value in params.items() if not _is_qemu(value)}
    # A case of a table is one object for all QEMUs, whatever it is equal to.
    case = tuple((name, value if isinstance(value, (str, int)) else id(value)) for name, value in others.items())
    family = (item.nodeid.partition("[")[0], case) if len(others) < len(params) else None
    return Candidate(item.nodeid, frozenset(mark.name for mark in item.iter_markers()), family)


def _is_qemu(value: object) -> bool:
    return isinstance(value, lab.Build) or (isinstance(value, str) and value in LABELS)


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


@pytest.fixture(scope="module")
def sole_claims() -> Iterator[None]:
    """Keep other tests waiting whose managers claim VMs, too: their domains would have the same numbers."""
    with (HOUSE / "build" / "claims.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


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
