"""What a stored case must be diagnosed as, as expected.json says it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from autopsy.dataclass import dataclass
from autopsy.diagnose.diagnosis import Confidence, Diagnosis, Where

NOTHING = "nothing"  # shown where one side of a change is empty


class Expected(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The part of a diagnosis that must not change unseen.

    `objects` are compared in any order, as are `secondary`, the signatures of what is wrong beside the cause;
    `ruled_out` are signatures that must be among those ruled out, for they look alike.
    """

    where: Where
    signature: str
    confidence: Confidence
    objects: tuple[str, ...] = ()
    secondary: tuple[str, ...] = ()
    ruled_out: tuple[str, ...] = ()

    @property
    def beside(self) -> tuple[str, ...]:
        """Return the signatures of what is wrong beside the cause."""
        return self.secondary


class SealedSecondary(msgspec.Struct, frozen=True, kw_only=True):
    """A signature beside the cause, in a sealed diagnosis."""

    signature: str


class SealedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The diagnosis that was sealed into a bundle, whichever autopsy wrote it: only what is compared is read."""

    where: str
    signature: str
    confidence: str
    objects: tuple[str, ...] = ()
    secondary: tuple[SealedSecondary, ...] = ()

    @property
    def beside(self) -> tuple[str, ...]:
        """Return the signatures of what is wrong beside the cause."""
        return tuple(claim.signature for claim in self.secondary)

    @property
    def ruled_out(self) -> tuple[str, ...]:
        """Return nothing: an analyzer that has learned more rules out other things."""
        return ()


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that is not as it was."""

    what: str
    old: str
    new: str


def of(diagnosis: Diagnosis) -> Expected:
    """Return what a diagnosis says, without what it ruled out."""
    return Expected(
        where=diagnosis.where,
        signature=diagnosis.signature,
        confidence=diagnosis.confidence,
        objects=tuple(sorted(set(diagnosis.objects))),
        secondary=tuple(sorted({claim.signature for claim in diagnosis.secondary})),
    )


def changes(expected: Expected | SealedAnswer, diagnosis: Diagnosis) -> tuple[Change, ...]:
    """Return everything in which the diagnosis differs from what was expected."""
    return tuple(_changes(expected, diagnosis))


def _changes(expected: Expected | SealedAnswer, diagnosis: Diagnosis) -> Iterator[Change]:
    actual = of(diagnosis)
    if expected.where != actual.where:
        yield Change("where", expected.where, actual.where)
    if expected.signature != actual.signature:
        yield Change("signature", expected.signature, actual.signature)
    if expected.confidence != actual.confidence:
        yield Change("confidence", expected.confidence, actual.confidence)
    if set(expected.objects) != set(actual.objects):
        yield Change("objects", _words(expected.objects), _words(actual.objects))
    if set(expected.beside) != set(actual.secondary):
        yield Change("secondary", _words(expected.beside), _words(actual.secondary))
    ruled_out = {signature.signature for signature in diagnosis.ruled_out}
    for signature in expected.ruled_out:
        if signature not in ruled_out:
            yield Change("ruled out", signature, NOTHING)


def renewed(old: Expected | None, diagnosis: Diagnosis) -> Expected:
    """Return what to expect from now on; of what had to be ruled out, what still is stays."""
    ruled_out = {signature.signature for signature in diagnosis.ruled_out}
    kept = tuple(signature for signature in old.ruled_out if signature in ruled_out) if old else ()
    return msgspec.structs.replace(of(diagnosis), ruled_out=kept)


def encode(expected: Expected) -> bytes:
    """Return expected.json's bytes, indented for eyes."""
    return msgspec.json.format(msgspec.json.encode(expected), indent=2) + b"\n"


def _words(values: Iterable[str]) -> str:
    return ", ".join(sorted(values)) or NOTHING
