"""Quotes of JSON what a sentence speaks of: the fields as they stand there, and dots for those between."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from autopsy.dataclass import dataclass

MOST_BYTES = 4 << 20  # of JSON that is looked into
MOST_OBJECTS = 4096
PIECE = re.compile(r"0x[0-9a-f]+|[\w./:@-]*\w")
PART = re.compile(r"[-_./:@]+")
LEAST = 3  # letters of a part of a name that says anything
EMPTY = frozenset({"all", "and", "any", "has", "its", "not", "one", "the", "was"})
OF_OTHERS = frozenset({"parent", "backing", "backing-image"})  # fields with what is told of another node
DEFAULT = frozenset({"status", "running"})
# What our sentences call otherwise than QEMU's counters.
COUNTERS = {
    "completed": ("rd_operations", "wr_operations"),
    "failed": ("failed_rd_operations", "failed_wr_operations"),
    "unread": ("receive_queue", "send_queue"),
}


@dataclass(frozen=True, slots=True)
class _Said:
    """The words of a sentence: as they stand, and the parts that names in them are made of."""

    words: frozenset[str]
    parts: frozenset[str]
    counters: frozenset[str]


def quote_of_document(data: bytes, sentence: str, most: int) -> str:
    """Return the object of a JSON document that a sentence speaks of, shortened; empty if it speaks of none."""
    document = _decoded(data)
    said = _said(sentence)
    best = _best(document, said)
    return _shown(best, said, most) if best is not None else ""


def quote_of_answer(lines: Sequence[bytes], sentence: str, most: int) -> str:
    """Return of a question to the monitor what its answer says of a sentence: `query-status: {"status":"paused"}`."""
    record = _decoded(lines[0]) if lines else None
    if not isinstance(record, dict):
        return ""
    said, question, answer = _said(sentence), record.get("question", ""), record.get("answer")
    best = _best(answer, said)
    if best is None and isinstance(answer, dict) and DEFAULT & set(answer):
        best = answer
    if best is None:
        asked = {key: record[key] for key in ("question", "outcome", "ms") if key in record}
        return _text(asked)[:most]
    return f"{question}: {_shown(best, said, most - len(question) - 2)}"


def _decoded(data: bytes) -> object:
    try:
        return msgspec.json.decode(data) if len(data) <= MOST_BYTES else None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None


def _said(sentence: str) -> _Said:
    words = {word.rstrip(".:") for word in PIECE.findall(sentence)}
    words |= {str(int(word, 16)) for word in words if word.startswith("0x") and len(word) > len("0x")}
    parts = {part for word in words for part in PART.split(word) if len(part) >= LEAST} - EMPTY
    counters = {name for word, names in COUNTERS.items() if word in words for name in names}
    return _Said(frozenset(words), frozenset(parts), frozenset(counters))


def _worth(key: str, value: object, said: _Said) -> int:
    """Return how much of the sentence a field says: a value that it names counts more than a name alone."""
    if key in said.counters:
        return 2
    if isinstance(value, list):
        return max((_worth("", item, said) for item in value if not isinstance(item, dict | list)), default=0)
    if isinstance(value, dict):
        return 0
    text = str(value)
    named = bool({part for part in PART.split(key) if len(part) >= LEAST} & said.parts)
    if isinstance(value, str) and text:
        inside = {part for part in PART.split(text) if len(part) >= LEAST} & said.parts
        return (4 if text in said.words else 2 if inside else 0) + named
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and text in said.words:
        return 3 if len(text) >= LEAST or named else 0
    return 1 if named and value else 0


def _best(document: object, said: _Said) -> Mapping[str, object] | None:
    """Return the object that says most, counting what those say that it lies in; shown with them, if they do.

    Of two that say as much it is the one that is met first.
    """
    best: tuple[Mapping[str, object], ...] = ()
    most = 1
    for number, chain in enumerate(_objects(document)):
        worth = sum(_worth(key, value, said) for fields in chain for key, value in fields.items())
        if worth > most:
            best, most = chain, worth
        if number > MOST_OBJECTS:
            break
    while len(best) > 1 and any(_worth(key, value, said) for key, value in best[-2].items()):
        best = best[:-1]
    return best[-1] if best else None


def _objects(document: object) -> Iterator[tuple[Mapping[str, object], ...]]:
    """Yield each object behind those that it lies in; no list of objects may lie between them."""
    ahead: list[tuple[object, tuple[Mapping[str, object], ...]]] = [(document, ())]
    while ahead:
        here, around = ahead.pop()
        if isinstance(here, dict):
            around = (*around, here)
            yield around
            inside = [(value, around) for key, value in here.items() if key not in OF_OTHERS]
        else:
            inside = [(value, ()) for value in here] if isinstance(here, list) else []
        ahead += reversed([part for part in inside if isinstance(part[0], dict | list)])


def _shown(fields: Mapping[str, object], said: _Said, most: int) -> str:
    """Return an object with the fields that the sentence speaks of, in their order; dots stand for the others."""
    pieces: list[str] = []
    left_out = False
    for key, value in fields.items():
        piece = _piece(key, value, said, most // 2)
        if piece and sum(map(len, pieces)) + len(piece) <= most:
            pieces.append(f"…{piece}" if left_out else piece)
            left_out = False
        else:
            left_out = True
    return "{" + ",".join(pieces) + ("…" if left_out else "") + "}"


def _piece(key: str, value: object, said: _Said, most: int) -> str:
    """Return a field, if the sentence speaks of it or of what is inside."""
    if isinstance(value, dict):
        inside = (
            _shown(value, said, most)
            if key not in OF_OTHERS and any(_worth(*item, said) for item in value.items())
            else ""
        )
        return f'"{key}":{inside}' if inside else ""
    return f"{_text({key: value})[1:-1]}" if _worth(key, value, said) or key in DEFAULT else ""


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode("utf-8", "replace")
