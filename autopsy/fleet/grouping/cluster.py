"""Names what captures of one mechanism have in common: the sink, or the ring, that the waiting ends at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b

from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.queries import naming
from autopsy.diagnose.waits.graph import Graph
from autopsy.diagnose.waits.leads import nameless
from autopsy.facts import subjects
from autopsy.facts.cite import Known
from autopsy.facts.model.facts import Facts
from autopsy.facts.subjects import Subject

LONGEST = 160
UNKNOWN = "unknown"
HEALTHY = "none"


def cluster(facts: Facts, diagnosis: Diagnosis, graph: Graph, named: tuple[str, ...], raw: tuple[str, ...]) -> str:
    """Return the signature with the end that it is about; without a signature the end, or else the stacks, tell.

    No name of a disk, a host or a thread is in it.
    """
    if diagnosis.where == HEALTHY:
        return diagnosis.signature
    threads = facts.threads.value if isinstance(facts.threads, Known) else ()
    whole: dict[Subject, Subject] = {subject: subject for subject in map(subjects.thread, threads)}
    end = _of_ring(diagnosis, graph, whole) or _of_sinks(diagnosis, graph, whole)
    if not end and diagnosis.signature == UNKNOWN:
        by, hashes = ("names", named) if named else ("offsets", raw)
        end = f"stacks by {by} {_short(hashes)}" if hashes else ""
    words = f"{diagnosis.signature}: {end}" if end else diagnosis.signature
    return words if len(words) <= LONGEST else f"{words[: LONGEST - 20]}… {_short([words])}"


def _of_ring(diagnosis: Diagnosis, graph: Graph, whole: Mapping[Subject, Subject]) -> str:
    named = set(diagnosis.subjects)
    for ring in graph.ends.rings:
        if named.isdisjoint(naming.record(whole.get(node, node)) for node in ring) and diagnosis.signature != UNKNOWN:
            continue
        waits = {
            f"{_kind(wait.waiter, whole)} {wait.how.value} {_kind(wait.on, whole)}"
            for wait in graph.waits
            if wait.waiter in ring and wait.on in ring
        }
        return f"ring of {', '.join(sorted(waits))}"
    return ""


def _of_sinks(diagnosis: Diagnosis, graph: Graph, whole: Mapping[Subject, Subject]) -> str:
    named = set(diagnosis.subjects)
    sinks: Iterable[Subject] = (sink for sink in graph.ends.sinks if naming.record(whole.get(sink, sink)) in named)
    if diagnosis.signature == UNKNOWN:
        sinks = (wait.end for wait in nameless(graph)[:1])
    return " and ".join(sorted({_kind(sink, whole) for sink in sinks}))


def _kind(subject: Subject, whole: Mapping[Subject, Subject]) -> str:
    """Return what kind of thing it is, as closely as that can be said without its name."""
    kind = naming.record(subject).kind
    match whole.get(subject, subject):
        case subjects.Thread(role=role):
            return f"{kind} ({role.value})"
        case subjects.Place(park):
            return f"{kind} ({park.name.lower()})"
        case subjects.Kernel(wait):
            return f"{kind} ({wait})"
        case subjects.Driver(driver=driver):
            return f"{kind} ({driver})"
        case subjects.FileSystem(fstype=fstype) if fstype:
            return f"{kind} ({fstype})"
        case _:
            return kind


def _short(words: Iterable[str]) -> str:
    return blake2b("\n".join(words).encode(), digest_size=6).hexdigest()
