"""Takes one piece of evidence away from a bundle: a file, a step, a line, a section, an element."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import msgspec

from autopsy.bundle import layout as names
from autopsy.bundle.manifest import Manifest
from autopsy.bundle.sections import Section, parse, render

# Written whole or not at all: a list without one of them lacks no evidence, it says that there was no such request.
COROUTINES = f"/{names.COROUTINES}"


@dataclass(frozen=True, slots=True)
class Body:
    """A bundle in memory; `asked` gathers the files that were wanted of it."""

    manifest: Manifest
    files: dict[str, bytes]
    asked: set[str] = field(default_factory=set)

    def read(self, path: str) -> bytes:
        self.asked.add(path)
        return self.files.get(path, b"")

    def names(self) -> tuple[str, ...]:
        return tuple(self.files)

    def having(self, path: str, data: bytes) -> Body:
        return replace(self, files={**self.files, path: data}, asked=set())

    def without(self, *paths: str) -> Body:
        return replace(self, files={path: data for path, data in self.files.items() if path not in paths}, asked=set())


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece of evidence, and the body without it."""

    name: str
    cut: Callable[[], Body]


def steps(body: Body) -> Iterator[Piece]:
    """Yield every step, as if it had timed out before it had left anything."""
    for step in names.STEPS:
        yield Piece(f"step {step}", partial(_without_step, body, step))


def files(body: Body, read: set[str]) -> Iterator[Piece]:
    """Yield every file that is read at all: gone, then cut off in its middle."""
    for path in sorted(read & body.files.keys()):
        yield Piece(f"file {path}", partial(body.without, path))
        yield Piece(f"end of {path}", partial(body.having, path, body.files[path][: len(body.files[path]) // 2]))


def crumbs(body: Body, read: set[str]) -> Iterator[Piece]:
    """Yield everything smaller: each exchange, thread, section and element."""
    for path in sorted(read & body.files.keys()):
        data = body.files[path]
        if path.endswith(".jsonl"):
            yield from _lines(body, path, data)
        elif path.endswith(".json") and not path.endswith(COROUTINES):
            yield from _elements(body, path, data)
        elif data.startswith(b"==> "):
            yield from _sections(body, path, data)


def _without_step(body: Body, step: str) -> Body:
    gone = [path for path in body.files if path.startswith(f"evidence/{step}/")]
    records = tuple(
        msgspec.structs.replace(each, outcome="TimedOut", why="after 5 s") if each.name == step else each
        for each in body.manifest.steps
    )
    return replace(body.without(*gone), manifest=msgspec.structs.replace(body.manifest, steps=records))


def _lines(body: Body, path: str, data: bytes) -> Iterator[Piece]:
    lines = data.splitlines(keepends=True)
    for number, line in enumerate(lines):
        question = json.loads(line).get("question", "")
        rest = b"".join(lines[:number] + lines[number + 1 :])
        yield Piece(f"{question} in {path}", partial(body.having, path, rest))


def _sections(body: Body, path: str, data: bytes) -> Iterator[Piece]:
    sections = tuple(parse(data))
    for thread in sorted({each.name.split("/")[1] for each in sections if each.name.startswith("task/")}):
        yield Piece(f"thread {thread} in {path}", partial(_without_sections, body, path, sections, f"task/{thread}/"))
    for each in sections:
        yield Piece(f"section {each.name} of {path}", partial(_without_sections, body, path, sections, each.name))


def _without_sections(body: Body, path: str, sections: tuple[Section, ...], start: str) -> Body:
    if start.endswith("/"):
        return body.having(path, render(each for each in sections if not each.name.startswith(start)))
    return body.having(path, render(each for each in sections if each.name != start))


def _elements(body: Body, path: str, data: bytes) -> Iterator[Piece]:
    """Yield the elements of every list down to the third level."""
    whole = json.loads(data)
    for way in _lists(whole, 3):
        values = _at(whole, way)
        named = f"{'.'.join(map(str, way)) or 'the list'} of {path}"
        for number in range(len(values)):
            yield Piece(f"{number} in {named}", partial(_with_list, body, path, data, way, number))


def _lists(value: Any, depth: int) -> Iterator[tuple[str | int, ...]]:
    if isinstance(value, list):
        if value:
            yield ()
        inner: Any = enumerate(value)
    elif isinstance(value, dict):
        inner = value.items()
    else:
        return
    if depth:
        for key, each in inner:
            for way in _lists(each, depth - 1):
                yield (key, *way)


def _at(value: Any, way: tuple[str | int, ...]) -> Any:
    for key in way:
        value = value[key]
    return value


def _with_list(body: Body, path: str, data: bytes, way: tuple[str | int, ...], number: int) -> Body:
    whole = json.loads(data)
    del _at(whole, way)[number]
    return body.having(path, json.dumps(whole).encode())
