"""Decides of each stored bundle whether it stays, and says why: pure, so that it can be asked before anything goes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime

from autopsy.dataclass import dataclass
from autopsy.fleet.index.parts import digest_in
from autopsy.fleet.places.place import StoredFile
from autopsy.fleet.retention.policy import RetentionPolicy

DAY = 86400.0
GIGABYTE = 1e9
BY_A_PERSON = frozenset({"human", "import"})
SURE = ("proven", "likely", "consistent", "possible")
SYMBOLS = ("dwarf", "symtab", "dynsym", "none")
UNKNOWN = "unknown"

COLUMNS = ("bundle", "signature", "cluster", "time", "trigger", "confidence", "symbols", "looks", "undecided", "error")
SQL = f"SELECT {', '.join(COLUMNS)} FROM latest"  # noqa: S608 - names of ours


@dataclass(frozen=True, slots=True)
class JudgedBundle:
    """What the index says of a bundle, as far as that decides."""

    bundle: str
    signature: str
    cluster: str
    time: datetime | None
    trigger: str
    confidence: str
    symbols: str
    looks: int
    undecided: int
    error: str

    @property
    def group(self) -> str:
        """Return what it is one of."""
        return self.cluster if self.signature == UNKNOWN else self.signature

    @property
    def rank(self) -> tuple[int, int, int, int]:
        """Return how much it shows: the best come first."""
        return (_place(SURE, self.confidence), _place(SYMBOLS, self.symbols), -self.looks, self.undecided)


@dataclass(frozen=True, slots=True)
class BundleFate:
    """One stored bundle, whether it stays, and why."""

    file: StoredFile
    keep: bool
    why: str


def decide(
    stored: Sequence[StoredFile], judged: Mapping[str, JudgedBundle], policy: RetentionPolicy, now: float
) -> tuple[BundleFate, ...]:
    """Return the fate of each; what is not understood stays."""
    kept = dict(_kept(stored, judged, policy))
    rest = sorted((file for file in stored if file.key not in kept), key=lambda file: -_seconds(file, judged))
    fates = [BundleFate(file, keep=True, why=kept[file.key]) for file in stored if file.key in kept]
    room = policy.rest.gigabytes * GIGABYTE
    for file in rest:
        age = (now - _seconds(file, judged)) / DAY
        room -= file.size
        if age > policy.rest.days:
            fates.append(
                BundleFate(file, keep=False, why=f"{age:.0f} days old, and one of many: more than {policy.rest.days:g}")
            )
        elif room < 0:
            fates.append(
                BundleFate(file, keep=False, why=f"old, and the rest takes more than {policy.rest.gigabytes:g} GB")
            )
        else:
            fates.append(BundleFate(file, keep=True, why=f"{age:.0f} days old"))
    return tuple(sorted(fates, key=lambda fate: fate.file.key))


def _kept(
    stored: Iterable[StoredFile], judged: Mapping[str, JudgedBundle], policy: RetentionPolicy
) -> Iterator[tuple[str, str]]:
    """Yield the keys that stay whatever their age, each with its reason; the last one told counts."""
    groups: dict[str, list[StoredFile]] = {}
    for file in stored:
        row = judged.get(digest_in(file.key))
        if row is None:
            yield file.key, "not diagnosed yet"
        elif row.error:
            yield file.key, "could not be diagnosed: nobody knows what it is, or who asked for it"
        else:
            groups.setdefault(row.group, []).append(file)
    for group, files in groups.items():
        by_time = sorted(files, key=lambda file: (_seconds(file, judged), file.key))
        by_rank = sorted(by_time, key=lambda file: judged[digest_in(file.key)].rank)
        for some, word in (
            (by_rank[: policy.for_ever.best], "best"),
            (by_time[len(by_time) - policy.for_ever.last :], "last"),
            (by_time[: policy.for_ever.first], "first"),
        ):
            yield from ((file.key, f"one of the {word} of {group}") for file in some)
        if policy.human.for_ever:
            for file in files:
                if judged[digest_in(file.key)].trigger in BY_A_PERSON:
                    yield file.key, "a person asked for it"


def _seconds(file: StoredFile, judged: Mapping[str, JudgedBundle]) -> float:
    """Return when it was captured; when it was stored, where the index does not know."""
    row = judged.get(digest_in(file.key))
    return row.time.replace(tzinfo=UTC).timestamp() if row is not None and row.time is not None else file.modified


def _place(words: Sequence[str], word: str) -> int:
    return words.index(word) if word in words else len(words)
