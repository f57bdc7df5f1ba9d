"""Redacts a command line: QEMU is told on it where its images lie, whom it serves, and with which passwords."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial

import msgspec

from autopsy.redact import patterns as words
from autopsy.redact import secrets
from autopsy.redact.json_values import walk
from autopsy.redact.pseudonyms import Pseudonyms
from autopsy.redact.secrets import REMOVED


def command_line(data: bytes, hide: Pseudonyms) -> bytes:
    """Return NUL-separated words of a command line, without secrets."""
    return b"\0".join(anew() for _, anew in words_anew(data, hide))


def words_anew(data: bytes, hide: Pseudonyms) -> Iterator[tuple[bytes, Callable[[], bytes]]]:
    """Yield the words of a command line, each with what makes it anew."""
    before = b""
    for word in data.split(b"\0"):
        yield word, partial(_word_anew, word, before, hide)
        before = word


def _word_anew(word: bytes, before: bytes, hide: Pseudonyms) -> bytes:
    if before in words.DROPPED_OPTIONS:
        return REMOVED.encode()
    return _encoded(redacted_word(_decoded(word), _decoded(before), hide))


def redacted_word(word: str, before: str, hide: Pseudonyms) -> str:
    """Return one word, which stands behind another, likewise."""
    if word.startswith("{"):
        try:
            return msgspec.json.encode(walk(msgspec.json.decode(word), "", hide)).decode()
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return hide.text(word)
    if secrets.KEY.search(before.lstrip("-")) and before.startswith("-"):
        return REMOVED
    word = secrets.without_secrets(word)
    secret = before == "-object" and "secret" in word.partition(",")[0]
    parts = []
    for place, part in enumerate(re.split(r"(?<!,),(?!,)", word)):
        key, equals, value = part.partition("=")
        if not equals:
            parts.append(hide.name("vm", part) if before == "-name" and not place else hide.whole(part))
        elif secret and key == "data":
            parts.append(f"{key}={REMOVED}")
        elif before == "-name" and key == "guest":
            parts.append(f"{key}={hide.name('vm', value)}")
        else:
            parts.append(f"{key}={hide.value(key, value)}")
    return ",".join(parts)


def _decoded(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
