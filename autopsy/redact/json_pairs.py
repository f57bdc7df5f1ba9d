"""Redacts a large JSON file by its distinct pairs of a key and a text: thousands of coroutines have the same frames."""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from autopsy.redact.pseudonyms import Pseudonyms

LARGE = 64 << 10  # bytes: with a smaller file nothing is saved
MOST_PAIRS = 65_536  # that differ: a file with more is gone through as any other
PAIR = re.compile(r'"([^"]*)"(?:(\s*:\s*)(?:"([^"]*)")?)?')
SECRET_KINDS = frozenset({"qom-type", "qom_type"})


class ByPairs(msgspec.Struct, frozen=True):
    """A file `made` of one; `texts` are all of it in which a name may have to be hidden."""

    made: bytes
    texts: str


def by_pairs(data: bytes, hide: Pseudonyms, kept: frozenset[str]) -> ByPairs | None:
    """Return what becomes of a large file; None also where that cannot be told quickly.

    Each pair of a key and a text is looked at once, in the order in which they stand; what is no such pair, and an
    object of QEMU's, takes the long way. The values of the keys in `kept` are of a closed vocabulary.
    """
    if len(data) < LARGE or b"\\" in data:
        return None
    try:
        text = data.decode()
        msgspec.json.decode(data, type=msgspec.Raw)  # between the texts there is nothing but JSON's own signs
    except (UnicodeDecodeError, msgspec.DecodeError):
        return None
    objects = text.split("{")
    distinct = dict.fromkeys(objects)
    if any(part.count('"') % 2 for part in distinct):  # a brace stands in a text
        objects, distinct = [text], {text: None}
    pairs = dict.fromkeys(PAIR.findall("{".join(distinct)))
    if len(pairs) > MOST_PAIRS:
        return None
    made = _pairs_made(pairs, hide, kept)
    if made is None:
        return None
    texts = "\n".join(f"{key}\n{'' if key in kept else value}" for key, _, value in pairs)
    if all((key, value) == made_of for (key, value), made_of in made.items()):
        return ByPairs(data, texts)
    put = _put(made)
    become = {part: PAIR.sub(put, part) for part in distinct}
    return ByPairs("{".join(become[part] for part in objects).encode(), texts)


def _pairs_made(
    pairs: dict[tuple[str, str, str], None], hide: Pseudonyms, kept: frozenset[str]
) -> dict[tuple[str, str], tuple[str, str]] | None:
    made = {}
    for key, colon, value in pairs:
        if not colon or key in SECRET_KINDS:
            return None
        new_key = hide.key(key)
        if key in kept:
            made[key, value] = (new_key, value)
            continue
        if value.startswith("json:"):
            return None
        made[key, value] = (new_key, hide.value(key, value))
    return made


def _put(made: dict[tuple[str, str], tuple[str, str]]) -> Callable[[re.Match[str]], str]:
    def put(match: re.Match[str]) -> str:
        key, value = made[match[1], match[3] or ""]
        behind = "" if match[3] is None else msgspec.json.encode(value).decode()
        return f"{msgspec.json.encode(key).decode()}{match[2]}{behind}"

    return put
