"""How long bundles are kept, as a file says it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from autopsy.errors import UsageError
from autopsy.files.plain import NotPlain, open_plain

DEFAULTS = Path(__file__).with_name("policy.toml")
MOST_BYTES = 1 << 16
Count = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]


class KeptForEver(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many bundles of each signature."""

    first: Count
    last: Count
    best: Count


class KeptForAWhile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long, and how much together."""

    days: Annotated[float, msgspec.Meta(ge=0, le=100_000)]
    gigabytes: Annotated[float, msgspec.Meta(ge=0)]


class AskedFor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether what a person asked for stays, however old it is."""

    for_ever: bool


class RetentionPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that a policy says; all of it must be said."""

    for_ever: KeptForEver
    rest: KeptForAWhile
    human: AskedFor


def read_policy(file: Path = DEFAULTS) -> RetentionPolicy:
    """Return what a file says.

    Raises:
        UsageError: it cannot be read, or says something else.
    """
    remedy = f"the defaults are written out in {DEFAULTS}"
    try:
        with open(open_plain(file), "rb") as stream:
            return msgspec.toml.decode(stream.read(MOST_BYTES), type=RetentionPolicy)
    except (OSError, NotPlain) as error:
        raise UsageError(str(file), f"cannot be read: {error}", remedy=remedy) from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise UsageError(str(file), str(error), remedy=remedy) from error
