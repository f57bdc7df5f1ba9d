"""From one bundle to its row: a pure function, without a name of anybody in what it returns."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import blake2b
from itertools import pairwise

from autopsy.bundle.manifest import Manifest
from autopsy.bundle.reader import Bundle
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.queries import naming
from autopsy.diagnose.queries.silence import silence_of
from autopsy.diagnose.verdict import diagnose
from autopsy.diagnose.waits.graph import build
from autopsy.facts import subjects
from autopsy.facts.cite import Known
from autopsy.facts.gather import gather_facts
from autopsy.facts.model.facts import Facts
from autopsy.fleet.grouping import stacks
from autopsy.fleet.grouping.cluster import cluster
from autopsy.fleet.index.row import FleetRow
from autopsy.store.place import EXPENDABLE
from autopsy.text import printable

LONGEST = 200  # of a word that a stranger chose
MOST_WORDS = 32
OLDEST = 1970
CACHE = re.compile(r"(?:^|,)cache=([a-z]{1,16})(?:,|$)")
DIRECT = re.compile(r"""cache\.direct=(?:on|true)|"direct":\s*true""")
WATCH, DRILL, IMPORT, HUMAN = "watch", "drill", "import", "human"


def analyze(bundle: Bundle, host_key: bytes) -> FleetRow:
    """Return the row of a bundle; which file it was, and which analyzer this is, is for the caller to say."""
    facts = gather_facts(bundle)
    diagnosis = diagnose(facts)
    manifest = bundle.manifest
    still = stacks.standing(facts)
    named, raw = stacks.named(still), stacks.raw(still, stacks.build_ids(bundle))
    return FleetRow(
        bundle="",
        stamp="",
        size=0,
        analyzer="",
        time=moment(manifest.began.utc),
        host=pseudonym(manifest.host.name, host_key),
        manager=manifest.target.manager,
        program=manifest.target.program,
        qemu_version=_word(manifest.target.qemu_version),
        build_id=_word(manifest.target.build_id),
        kernel=_word(manifest.host.kernel),
        distribution=_word(manifest.host.distribution),
        where=diagnosis.where,
        signature=diagnosis.signature,
        confidence=diagnosis.confidence,
        secondary=tuple(sorted({claim.signature for claim in diagnosis.secondary})),
        objects=dict(sorted(Counter(subject.kind for subject in diagnosis.subjects).items())),
        since_seconds=_since(facts, diagnosis),
        cluster=_word(cluster(facts, diagnosis, build(facts), named, raw)),
        stacks_raw=raw,
        stacks_named=named,
        drivers=tuple(sorted(set(_drivers(facts))))[:MOST_WORDS],
        trigger=_trigger(manifest),
        symbols=_word(facts.symbols.value) if isinstance(facts.symbols, Known) else "",
        looks=1 + isinstance(facts.times.second_ns, Known),
        undecided=len(diagnosis.cannot_tell),
    )


def pseudonym(host: str, key: bytes) -> str:
    """Return a host's name as the index calls it; without a key, whoever has a list of hosts finds it out."""
    return f"host-{blake2b(host.encode('utf-8', 'replace'), key=key, digest_size=6).hexdigest()}" if host else ""


def moment(utc: str) -> str | None:
    """Return a time of a manifest as every reader of the index takes it; None for one that is none."""
    try:
        when = datetime.fromisoformat(utc).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return when.replace(tzinfo=None).isoformat(sep=" ") if when.year >= OLDEST else None


def _trigger(manifest: Manifest) -> str:
    """Say who wanted the capture: its command line tells, and one that tells nothing is taken for a person's.

    The watch has its captures put where things lie that nobody asked to keep.
    """
    if manifest.imported is not None:
        return IMPORT
    if manifest.options[:1] == (DRILL,):
        return DRILL
    places = (after for word, after in pairwise(manifest.options) if word == "--out")
    return WATCH if any(place.rpartition("/")[2] == EXPENDABLE for place in places) else HUMAN


def _since(facts: Facts, diagnosis: Diagnosis) -> float | None:
    """Return how long the disk that has been silent the longest was so, of those that the diagnosis is about."""
    if diagnosis.where == "none" or not isinstance(facts.disks, Known):
        return None
    named = set(diagnosis.subjects)
    about = [disk for disk in facts.disks.value if naming.record(subjects.disk(disk)) in named]
    silent = [silence.idle_ns for disk in about or facts.disks.value if (silence := silence_of(disk)) is not None]
    return round(max(silent) / 1e9, 3) if silent else None


def _drivers(facts: Facts) -> Iterator[str]:
    for node in facts.nodes:
        yield f"driver={_word(node.driver)}"
        if node.aio:
            yield f"aio={_word(node.aio)}"
    for disk in facts.disks.value if isinstance(facts.disks, Known) else ():
        if isinstance(disk.model, Known) and disk.model.value:
            yield f"bus={_word(disk.model.value)}"
    for argument in facts.vm.arguments.value if isinstance(facts.vm.arguments, Known) else ():
        if match := CACHE.search(argument):
            yield f"cache={match[1]}"
        if DIRECT.search(argument):
            yield "cache=direct"


def _word(text: str) -> str:
    return printable(text, LONGEST)
