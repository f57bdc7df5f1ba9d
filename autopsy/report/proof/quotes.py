"""Quotes for a sentence of the diagnosis the one line of the evidence that says most of it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from autopsy.dataclass import dataclass
from autopsy.diagnose.diagnosis import Claim
from autopsy.facts.evidence import Evidence
from autopsy.report.proof.json_quotes import quote_of_answer, quote_of_document

QUOTED = 150  # characters of a line of evidence
BEFORE = 50  # of them ahead of the words that are cited
WORD = re.compile(r"\w[\w./@-]{3,}\w")
BLOCK = 48  # lines that a cite of a block may be followed by
MOST_CITES = 3
# What heads a block, or stands in all of them: it names nothing that could be proven by it.
HEAD = re.compile(
    r"\d+ coroutines? parked|Thread \d+ |(Name|Tgid|N?S?[Pp]id|NStgid):|==>|(0x[0-9a-f]+ ?)+$"
    r"|.*\bqemu_coroutine_switch\b"
)
# What says where something is even if the sentence has none of its words: a kernel's frame, a frame with a name.
TELLING = re.compile(r"\[<0>\] \w|#\d+ .* in (?!\?\?|qemu_co|qio_|__)\w|State: [^S]")


@dataclass(frozen=True, slots=True)
class Quote:
    """A line of the evidence, shortened, and the file that it stands in; empty where there is none."""

    text: str = ""
    file: str = ""


def quote(bundle: Evidence, claim: Claim) -> Quote:
    """Return the line that says most of what the claim says, of those that its cites lead to: blocks begin there."""
    quotes = [
        Quote(text, cite.file)
        for cite in claim.cites[:MOST_CITES]
        if (text := _of_json(bundle, claim, cite.file, cite.line))
    ]
    if quotes:
        return quotes[0]
    best, most = Quote(), 0
    said = frozenset(WORD.findall(claim.text))
    for file, text in _lines(bundle, claim):
        shared = sorted(said & frozenset(WORD.findall(text)), key=len, reverse=True)
        worth = 2 * sum(map(len, shared)) + bool(TELLING.match(text))
        if HEAD.match(text) or (shared and text.strip("/") == shared[0]):
            worth = 0  # a name alone says nothing of it
        if worth > most:
            best, most = Quote(_around(text, shared[0] if shared else ""), file), worth
    return best if most else _first(bundle, claim)


def _of_json(bundle: Evidence, claim: Claim, file: str, line: int) -> str:
    if file.endswith(".json") and not line:
        return quote_of_document(bundle.read(file), claim.text, QUOTED)
    if file.endswith(".jsonl") and line:
        return quote_of_answer(bundle.read(file).splitlines()[line - 1 : line], claim.text, QUOTED)
    return ""


def _lines(bundle: Evidence, claim: Claim) -> Iterator[tuple[str, str]]:
    """Yield the lines of the blocks that the claim cites."""
    for cite in claim.cites[:MOST_CITES]:
        lines = bundle.read(cite.file).splitlines()[cite.line - 1 : cite.line - 1 + BLOCK] if cite.line > 0 else []
        for number, line in enumerate(lines):
            text = " ".join(line.decode("utf-8", "replace").split())
            if number and not text:
                break  # the block ends
            yield cite.file, text


def _first(bundle: Evidence, claim: Claim) -> Quote:
    """Return the words that were found at the first cite that has any; else the head of the first block."""
    named = next((Quote(cite.text, cite.file) for cite in claim.cites if cite.text), None)
    return named or next((Quote(_around(text, ""), file) for file, text in _lines(bundle, claim) if text), Quote())


def _around(line: str, words: str) -> str:
    """Cut a long line to what stands around some words of it."""
    if len(line) <= QUOTED:
        return line
    begin = max(0, line.find(words) - BEFORE) if words else 0
    end = begin + QUOTED
    return f"{'…' if begin else ''}{line[begin:end]}{'…' if end < len(line) else ''}"
