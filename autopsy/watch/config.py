"""The configuration of the watch: what the file may say, its defaults, and an error for all that it cannot mean."""

from __future__ import annotations

import difflib
import itertools
import tomllib
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from autopsy.errors import UsageError
from autopsy.files import private
from autopsy.files.plain import NotPlain
from autopsy.linux.files import read_plain
from autopsy.watch.limits import CaptureLimits, Seconds
from autopsy.watch.signs.monitors import MonitorAsking

PLACE = Path("/etc/autopsy/watch.toml")
MOST_BYTES = 1 << 20


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How often VMs are looked at."""

    every_seconds: Seconds = 2.0
    requests_every_seconds: Seconds = 5.0
    vms_every_seconds: Seconds = 10.0


class Stages(msgspec.Struct, frozen=True, kw_only=True):
    """What is done once a stall has lasted so long."""

    suspect_seconds: Seconds = 3.0
    light_seconds: Seconds = 5.0
    capture_seconds: Seconds = 8.0
    stalled_seconds: Seconds = 10.0


class MetricsOutput(msgspec.Struct, frozen=True, kw_only=True):
    """Where metrics go; empty is nowhere."""

    listen: str = ""
    anywhere: bool = False
    textfile: str = ""


class Sending(msgspec.Struct, frozen=True, kw_only=True):
    """Where sealed bundles are to be sent; an empty place is nowhere. `recipients` are whom age encrypts them for."""

    place: str = ""
    redact: bool = True
    recipients: tuple[str, ...] = ()


class WatchConfig(msgspec.Struct, frozen=True, kw_only=True):
    """All of it."""

    sampling: Sampling = Sampling()
    stages: Stages = Stages()
    captures: CaptureLimits = CaptureLimits()
    monitor: MonitorAsking = MonitorAsking()
    metrics: MetricsOutput = MetricsOutput()
    sending: Sending = Sending()


def load(path: Path | None = None) -> WatchConfig:
    """Return what a file says, or the usual one where none is named; without any, the defaults.

    Raises:
        UsageError: it cannot be read or meant: with the file, the key, why, and what could be meant.
    """
    wanted = path or PLACE
    try:
        data = read_plain(private.meant_by(wanted), MOST_BYTES)
    except FileNotFoundError as error:
        if path is None:
            return WatchConfig()
        raise UsageError(str(path), "there is no such file", remedy=_remedy(wanted)) from error
    except (OSError, NotPlain) as error:
        raise UsageError(str(wanted), _why(error), remedy=_remedy(wanted)) from error
    try:
        said = tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(str(wanted), f"is no TOML: {error}", remedy=_remedy(wanted)) from error
    return _checked(_meant(said, wanted), wanted)


def _why(error: OSError | NotPlain) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def _remedy(path: Path) -> str:
    return f"put {path} right, or take the one that is shipped: each key stands in it with its default"


def _meant(said: dict[str, Any], path: Path) -> WatchConfig:
    sections = {}
    for section, values in said.items():
        kind = _known(section, get_type_hints(WatchConfig), f"[{section}]", path)
        if not isinstance(values, dict):
            raise UsageError(
                f"{path}: {section}", "is a section, not a value", remedy=f"write [{section}] above its keys"
            )
        hints = get_type_hints(kind, include_extras=True)
        meant = {}
        for key, value in values.items():
            place = f"{path}: [{section}] {key}"
            wanted = _known(key, hints, f"[{section}] {key}", path)
            try:
                meant[key] = msgspec.convert(value, type=wanted)
            except msgspec.ValidationError as error:
                raise UsageError(place, str(error), remedy=_default_of(kind, key)) from error
        sections[section] = kind(**meant)
    return WatchConfig(**sections)


def _known(word: str, hints: dict[str, Any], place: str, path: Path) -> Any:  # noqa: ANN401 - a type, or one with bounds
    if word in hints:
        return hints[word]
    alike = difflib.get_close_matches(word, hints, n=1)
    meant = f"did you mean {alike[0]}?" if alike else f"there are {', '.join(hints)}"
    raise UsageError(f"{path}: {place}", "is not known", remedy=meant)


def _default_of(kind: type[msgspec.Struct], key: str) -> str:
    default = next(field.default for field in msgspec.structs.fields(kind) if field.name == key)
    return f"its default is {msgspec.json.encode(default).decode()}"


def _checked(config: WatchConfig, path: Path) -> WatchConfig:
    """Refuse stages that would come in another order than they are told in."""
    stages = config.stages
    order = ("suspect_seconds", "light_seconds", "capture_seconds", "stalled_seconds")
    for before, after in itertools.pairwise(order):
        if getattr(stages, before) > getattr(stages, after):
            raise UsageError(
                f"{path}: [stages] {before}", f"comes after {after}", remedy=f"the order is {', '.join(order)}"
            )
    if config.captures.again_after_seconds <= stages.capture_seconds:
        raise UsageError(
            f"{path}: [captures] again_after_seconds",
            "comes before the first capture",
            remedy="give more than [stages] capture_seconds",
        )
    return config
