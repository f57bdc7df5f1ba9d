"""The configuration file: all of it stands in what is shipped, and what cannot be meant is told with its key."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopsy.errors import ExitCode, UsageError
from autopsy.watch import config
from autopsy.watch.config import WatchConfig, load
from autopsy.watch.limits import CaptureLimits
from support import lab

SHIPPED = lab.HOUSE / "packaging" / "watch.toml"


def refused(path: Path, text: str | bytes) -> UsageError:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError) as told:
        load(path)
    assert str(told.value).startswith(str(path))
    assert told.value.remedy
    assert told.value.exit_code == ExitCode.USAGE
    return told.value


def test_the_shipped_file_has_every_key_with_the_codes_own_default() -> None:
    assert tomllib.loads(SHIPPED.read_text()) == msgspec.json.decode(msgspec.json.encode(WatchConfig()))
    assert load(SHIPPED) == WatchConfig()


def test_the_gates_own_defaults_are_those_of_the_file() -> None:
    assert WatchConfig().captures == CaptureLimits()
    assert tomllib.loads(SHIPPED.read_text())["captures"] == msgspec.structs.asdict(CaptureLimits())


def test_what_is_left_away_has_its_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "watch.toml"
    path.write_text("[captures]\nper_vm = 7\nagain_after_seconds = 90\n")
    told = load(path)
    assert (told.captures.per_vm, told.captures.again_after_seconds) == (7, 90.0)
    assert told.captures.per_host == 6
    assert told.stages == WatchConfig().stages
    monkeypatch.setattr(config, "PLACE", tmp_path / "absent")
    assert load() == WatchConfig()
    monkeypatch.setattr(config, "PLACE", path)
    assert load() == told


@pytest.mark.parametrize(
    ("text", "key", "cause"),
    [
        ("[capture]\nper_vm = 1", "[capture]", "not known"),
        ("[captures]\nper_vms = 1", "[captures] per_vms", "not known"),
        ("captures = 3", "captures", "a section"),
        ("[captures]\nper_vm = '2'", "[captures] per_vm", "Expected `int`"),
        ("[captures]\nper_vm = 2.5", "[captures] per_vm", "Expected `int`"),
        ("[captures]\nper_vm = true", "[captures] per_vm", "Expected `int`"),
        ("[captures]\nper_vm = -1", "[captures] per_vm", ">= 0"),
        ("[captures]\nenabled = 1", "[captures] enabled", "Expected `bool`"),
        ("[sampling]\nevery_seconds = 0", "[sampling] every_seconds", "> 0"),
        ("[sampling]\nevery_seconds = nan", "[sampling] every_seconds", "> 0"),
        ("[sampling]\nevery_seconds = inf", "[sampling] every_seconds", "<= 86400"),
        ("[metrics]\nlisten = 9719", "[metrics] listen", "Expected `str`"),
        ("[stages]\nlight_seconds = 9", "[stages] light_seconds", "comes after capture_seconds"),
        ("[captures]\nagain_after_seconds = 8", "[captures] again_after_seconds", "before the first"),
    ],
)
def test_what_cannot_be_meant_is_told_with_its_file_key_cause_and_next_move(
    tmp_path: Path, text: str, key: str, cause: str
) -> None:
    told = refused(tmp_path / "watch.toml", text)
    assert key in told.thing
    assert cause in told.cause


def test_a_key_that_is_nearly_one_is_told_with_the_one_that_it_may_mean(tmp_path: Path) -> None:
    assert "per_vm?" in refused(tmp_path / "w.toml", "[captures]\nper_vms = 1").remedy
    assert "captures?" in refused(tmp_path / "w.toml", "[capture]\n").remedy


def test_what_is_no_toml_no_file_or_too_large_is_told(tmp_path: Path) -> None:
    path = tmp_path / "w.toml"
    assert "no TOML" in refused(path, "[captures").cause
    assert "no TOML" in refused(path, b"\xff").cause
    refused(path, b"a = " + b"[" * 100_000)
    refused(path, b"#" * (config.MOST_BYTES + 1))
    for absent in (tmp_path / "absent", tmp_path):
        with pytest.raises(UsageError):
            load(absent)


def test_a_fifo_is_not_waited_for_and_a_link_of_ours_is_followed(tmp_path: Path) -> None:
    subprocess.run(["mkfifo", tmp_path / "fifo"], check=True)
    with pytest.raises(UsageError, match="not a regular file"):
        load(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(SHIPPED)
    assert load(tmp_path / "link") == WatchConfig()


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_whatever_stands_in_the_file_it_is_meant_or_refused(data: bytes) -> None:
    path = Path("/dev/shm") / "autopsy-test-config.toml"  # noqa: S108 - one name for hundreds of examples
    path.write_bytes(data)
    try:
        load(path)
    except UsageError:
        pass
    finally:
        path.unlink()
