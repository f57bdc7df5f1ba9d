"""What the watch has captured is left to be sent where the configuration names a place, and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from autopsy.commands import watch as watching
from autopsy.errors import UsageError
from autopsy.fleet.sending import spool
from autopsy.watch.config import Sending, WatchConfig
from autopsy.watch.launch import EndedCapture
from autopsy.watch.loop import Watch
from autopsy.watch.model import CaptureResult


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "autopsy"))
    (tmp_path / "autopsy").mkdir(mode=0o700)
    made = tmp_path / "autopsy" / "autopsy-web1-20260101T000000Z.tar.zst"
    made.write_bytes(b"sealed")
    return made


def test_a_bundle_of_the_watch_waits_in_the_spool_for_the_place_that_is_named(bundle: Path) -> None:
    said: list[str] = []
    watching.leave_to_be_sent(Sending(place="s3://evidence/stalls", recipients=("age1x",)), said.append, bundle)
    (entry,) = spool.entries()
    assert (entry.note.bundle, entry.note.place) == (str(bundle), "s3://evidence/stalls")
    assert entry.note.redact
    assert entry.note.recipients == ("age1x",)
    assert said == []


def test_without_a_place_nothing_is_left(bundle: Path) -> None:
    watching.leave_to_be_sent(Sending(), pytest.fail, bundle)
    assert spool.entries() == ()


def test_a_spool_that_cannot_be_had_is_said_and_costs_no_bundle(bundle: Path) -> None:
    bundle.parent.joinpath(spool.SPOOL).write_text("in its place")
    said: list[str] = []
    watching.leave_to_be_sent(Sending(place="/srv/evidence"), said.append, bundle)
    assert str(bundle) in said[0]
    assert bundle.read_bytes() == b"sealed"


def test_a_place_that_is_none_is_said_before_anything_is_watched() -> None:
    config = WatchConfig(sending=Sending(place="ftp://evidence"))
    with pytest.raises(UsageError, match="ftp://evidence"):
        watching.watch_on(config, (), captures=False, say=pytest.fail)


@dataclass
class EndingCaptures:
    """A launcher whose captures have just ended."""

    ends: tuple[EndedCapture, ...]

    def ended(self) -> tuple[EndedCapture, ...]:
        return self.ends


def test_each_sealed_bundle_is_told_of_and_no_failed_one() -> None:
    told: list[Path] = []
    ends = EndingCaptures(
        (
            EndedCapture(vm="web1", result=CaptureResult.SEALED, bundle="/x/full.tar.zst"),
            EndedCapture(vm="web1", result=CaptureResult.LIGHT, light=True, bundle="/x/light.tar.zst"),
            EndedCapture(vm="web2", result=CaptureResult.FAILED),
        )
    )
    watch = Watch(launcher=ends, sealed=told.append)  # type: ignore[arg-type]  # all that is asked of it
    try:
        watch._act((), 0.0)
    finally:
        watch.close()
    assert told == [Path("/x/full.tar.zst"), Path("/x/light.tar.zst")]
