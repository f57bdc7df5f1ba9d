"""Cuts out of the evidence what the report cites, so that each cite leads to the line itself."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import field

from autopsy.dataclass import dataclass
from autopsy.facts.cite import Cite
from autopsy.facts.evidence import Evidence

CONTEXT = 2  # lines on either side of a cited one
WIDTH = 420  # characters of a line
MOST_LINES = 160  # cited lines of one file
MOST_BYTES = 8 << 20  # of a file that is cut into lines
MARKED = 80  # characters of a long line
OPENING = 6  # lines of a file that is cited as a whole
HEX = re.compile(r"0x[0-9a-f]{4,16}")
WORD = re.compile(r"[\w.:/@-]{4,}")
FIELD = re.compile(r": (\w+) \S")
NEAR = 60  # lines of /proc/TID/status
PLAIN = re.compile(r"[^A-Za-z0-9.]+")


@dataclass(frozen=True, slots=True)
class Link:
    """Where a cite leads inside the report: `place` is `:328`, `text` the words found there."""

    target: str
    file: str
    place: str
    text: str

    @property
    def label(self) -> str:
        """Return `witness/tasks.txt:328`."""
        return self.file + self.place


@dataclass(frozen=True, slots=True)
class ExcerptLine:
    """One line of an excerpt. `target` is the id that cites lead to, empty for a line that stands around.

    `rest` is what follows the marked text: of a long line only its beginning is marked. `cut` characters are left out.
    """

    number: int
    text: str
    rest: str = ""
    target: str = ""
    cut: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Excerpt:
    """What the report shows of one file: pieces of consecutive lines. `note` says why there is nothing more."""

    path: str
    target: str
    pieces: tuple[tuple[ExcerptLine, ...], ...]
    note: str = ""


@dataclass(slots=True)
class _File:
    """A cited file: its lines, and which of them are cited by what words."""

    target: str
    lines: list[str]
    present: bool
    cited: dict[int, str] = field(default_factory=dict)


@dataclass(slots=True)
class Excerpts:
    """Remembers each cite that the report shows; the excerpts come last, when all of them are known."""

    bundle: Evidence
    _files: dict[str, _File] = field(default_factory=dict)
    _targets: set[str] = field(default_factory=set)

    def links(self, cites: Iterable[Cite]) -> tuple[Link, ...]:
        """Return where these cites lead, each place once."""
        return tuple({link.target: link for link in map(self.link, cites)}.values())

    def link(self, cite: Cite) -> Link:
        """Return where one cite leads: its line, or the head of its file."""
        file = self._file(cite.file)
        label = cite.file.removeprefix("evidence/")
        number = _locate(file.lines, cite)
        if not number or (number not in file.cited and len(file.cited) >= MOST_LINES):
            return Link(file.target, label, f":{cite.line}" if cite.line else "", cite.text)
        file.cited.setdefault(number, cite.text)
        return Link(f"{file.target}-{number}", label, f":{number}", cite.text)

    def all(self) -> tuple[Excerpt, ...]:
        """Return the excerpts of every file that was cited so far, by path."""
        return tuple(_excerpt(path, file) for path, file in sorted(self._files.items()))

    def _file(self, path: str) -> _File:
        if path not in self._files:
            slug = "at-" + PLAIN.sub("-", path.removeprefix("evidence/"))[:120]
            target, number = slug, 2
            while target in self._targets:  # names that differ only in what an id cannot hold
                target, number = f"{slug}_{number}", number + 1
            self._targets.add(target)
            data = self.bundle.read(path)[:MOST_BYTES]
            text = data.decode("utf-8", "replace")
            if b"\0" in data[:4096]:  # /proc/PID/cmdline ends each word with a NUL
                text = text.replace("\0", "\n")
            lines = text.removesuffix("\n").split("\n") if text else []
            self._files[path] = _File(target, lines, present=bool(data) or path in self.bundle.names())
        return self._files[path]


def _locate(lines: list[str], cite: Cite) -> int:
    """Return the cited line, 1-based. JSON is cited by address: its line is the one that holds that number."""
    if cite.file.endswith(".json"):
        for word in HEX.findall(cite.text):
            wanted = f": {int(word, 16)}"
            for number, line in enumerate(lines, start=1):
                if line.rstrip(",").endswith(wanted):
                    return number
    if 0 < cite.line <= len(lines):
        return _field(lines, cite) or cite.line
    for word in sorted(WORD.findall(cite.text), key=len, reverse=True)[:4]:
        for number, line in enumerate(lines, start=1):
            if word in line:
                return number
    return 0


def _field(lines: list[str], cite: Cite) -> int:
    """Return the line of the field that a cite of a whole section speaks of: `task 42: State D` means `State:`."""
    match = FIELD.search(cite.text)
    if match is None:
        return 0
    near = enumerate(lines[cite.line - 1 : cite.line - 1 + NEAR], start=cite.line)
    return next((number for number, line in near if line.startswith(f"{match[1]}:")), 0)


def _excerpt(path: str, file: _File) -> Excerpt:
    if not file.present:
        return Excerpt(path=path, target=file.target, pieces=(), note="This bundle does not hold it.")
    around = 0 if path.endswith(".jsonl") else CONTEXT
    last = len(file.lines)
    shown: set[int] = set()
    for number in file.cited:
        shown.update(range(max(1, number - around), min(last, number + around) + 1))
    note = ""
    if not shown:
        shown.update(range(1, min(last, OPENING) + 1))
        note = "It is cited as a whole; it begins so:" if shown else "It is empty."
    pieces: list[list[ExcerptLine]] = []
    for number in sorted(shown):
        words = file.cited.get(number)
        text, cut = _cut(file.lines[number - 1].expandtabs(8), words or "")
        marked = len(text) if len(text) < 2 * MARKED else MARKED
        target = f"{file.target}-{number}" if words is not None else ""
        line = ExcerptLine(number, text[:marked], text[marked:], target, cut)
        if pieces and pieces[-1][-1].number == number - 1:
            pieces[-1].append(line)
        else:
            pieces.append([line])
    return Excerpt(path=path, target=file.target, pieces=tuple(tuple(piece) for piece in pieces), note=note)


def _cut(text: str, words: str) -> tuple[str, int]:
    """Shorten a long line around the words that it is cited for; return how many characters were left out too."""
    if len(text) <= WIDTH:
        return text, 0
    for word in sorted(WORD.findall(words), key=len, reverse=True):
        place = text.find(word)
        if place > WIDTH - 60:
            head = text[: WIDTH // 3]
            start = max(WIDTH // 3, place - WIDTH // 4)
            tail = text[start : start + 2 * WIDTH // 3]
            return f"{head} … {tail}", len(text) - len(head) - len(tail)
    return text[:WIDTH], len(text) - WIDTH
