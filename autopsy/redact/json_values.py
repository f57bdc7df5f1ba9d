"""Redacts JSON: what stands behind which key is known, and so is what it may tell."""

from __future__ import annotations

from typing import Any

import msgspec

from autopsy.redact.json_pairs import by_pairs
from autopsy.redact.pseudonyms import Pseudonyms
from autopsy.redact.secrets import REMOVED

# Words of a closed vocabulary, and names of functions.
JSON_KEPT = frozenset(
    """
    words build_id function near symbol outcome kind how state doing call since_first family symbols driver drv type
    status main_state main_wchan io-status execute question wchan qom-type under transport protocol architecture
    """.split()  # noqa: SIM905 - words read best as words
)


def redacted_json(data: bytes, hide: Pseudonyms) -> bytes:
    """Return a file of JSON without whose it was; what is no JSON is taken for text."""
    large = by_pairs(data, hide, JSON_KEPT)
    return redacted_line(data, hide) if large is None else large.made


def redacted_line(data: bytes, hide: Pseudonyms) -> bytes:
    """Return JSON of which each value is gone through by itself, likewise."""
    if not data.strip():
        return data
    try:
        whole = walk(msgspec.json.decode(data), "", hide)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return hide.text(data.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
    made = msgspec.json.encode(whole)
    if b"\n" in data.strip():
        made = msgspec.json.format(made, indent=1)
    return made + (b"\n" if data.endswith(b"\n") else b"")


def walk(value: Any, key: str, hide: Pseudonyms) -> Any:  # noqa: ANN401 - JSON is whatever it is
    """Return decoded JSON without whose it was; `key` is what it stands behind."""
    if isinstance(value, str):
        return value if key in JSON_KEPT else _string(value, key, hide)
    if isinstance(value, list):
        return [walk(member, key, hide) for member in value]
    if isinstance(value, dict):
        secret = str(value.get("qom-type", value.get("qom_type", ""))).startswith("secret")
        return {
            hide.key(name): REMOVED if secret and name == "data" else walk(member, name, hide)
            for name, member in value.items()
        }
    return value


def _string(value: str, key: str, hide: Pseudonyms) -> str:
    if value.startswith("json:"):
        try:
            return "json:" + msgspec.json.encode(walk(msgspec.json.decode(value[5:]), "", hide)).decode()
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return hide.text(value)
    return hide.value(key, value)
