"""Makes a copy of a bundle that can be shown to strangers: no memory, no secrets, pseudonyms for names."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec

from autopsy import __version__
from autopsy.bundle import layout
from autopsy.bundle.manifest import Manifest
from autopsy.bundle.reader import Bundle, open_bundle
from autopsy.bundle.readme import readme
from autopsy.bundle.seal import Sealed, encode_manifest, seal
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.errors import NotStored
from autopsy.facts.gather import gather
from autopsy.facts.host import STORAGE_WORDS, VM_WORDS
from autopsy.files import private
from autopsy.redact.files import left_out, manifest, redacted
from autopsy.redact.pseudonyms import Pseudonyms
from autopsy.report.store import write_answers

REPORT_SECONDS = 30.0
NOTE = (
    "redacted: pseudonyms stand for hosts, VMs, users, paths and addresses; secrets, cores, the binary and the lines "
    "of logs that no verdict rests on were left out"
)
OF_INTEREST = (*STORAGE_WORDS, *VM_WORDS, "call trace", "task:", "nfs:")


@dataclass(frozen=True, slots=True)
class Redacted:
    """A copy for strangers, and the map that is its owner's. `same`: its diagnosis is the original's."""

    sealed: Sealed
    map: Path
    same: bool


def redact(path: Path, output: Path | None) -> Redacted:
    """Make the copy. The same bundle gives the same copy, byte for byte.

    Raises:
        UsageError: there is no such bundle.
        DamagedBundle: it is no bundle, or only part of one.
        NotStored: the copy or its map could not be written, or is there already.
    """
    bundle = open_bundle(path)
    hide = Pseudonyms(kept=_kept(bundle))
    _pass(bundle, hide)
    hide.learned()
    told, files = _pass(bundle, hide)
    destination = (output or path.absolute().with_name(_name(told))).absolute()
    staging = Path(tempfile.mkdtemp(prefix=".redacting-", dir=destination.parent))
    try:
        for name, data in files.items():
            private.store_below(staging, name, data)
        private.store(staging / layout.MANIFEST, encode_manifest(told))
        private.store(staging / layout.README, readme(__version__, told.target, told.began).encode())
        found = write_answers(staging).diagnosis
        sealed = seal(staging, destination, told)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    kept_map = _store_map(path.absolute(), hide)
    return Redacted(sealed, kept_map, same=_gist(found) == _gist(diagnose(gather(bundle))))


def _pass(bundle: Bundle, hide: Pseudonyms) -> tuple[Manifest, dict[str, bytes]]:
    told = manifest(bundle.manifest, hide)
    told = msgspec.structs.replace(told, notes=(*told.notes, NOTE), files=())
    return told, {
        name: redacted(name, bundle.read(name), hide, _of_interest)
        for name in sorted(bundle.names())
        if not left_out(name)
    }


def _kept(bundle: Bundle) -> frozenset[str]:
    """Return the build ids, by which anybody finds the public symbols."""
    modules = bundle.read(layout.evidence(layout.GDB_THREADS, layout.MODULES))
    try:
        known = [str(each.get("build_id", "")) for each in msgspec.json.decode(modules)] if modules else []
    except (msgspec.DecodeError, AttributeError, RecursionError):
        known = []
    return frozenset(filter(None, (*known, bundle.manifest.target.build_id)))


def _of_interest(line: str) -> bool:
    small = line.lower()
    return any(word in small for word in OF_INTEREST)


def _name(told: Manifest) -> str:
    moment = "".join(character for character in told.began.utc[:19] if character.isdigit() or character == "T")
    return f"autopsy-redacted-{moment}Z.tar.zst"


def _store_map(path: Path, hide: Pseudonyms) -> Path:
    place = path.with_name(f"{path.name}.redaction.json")
    data = msgspec.json.format(msgspec.json.encode(hide.table()), indent=1) + b"\n"
    try:
        private.publish(place, data)
    except OSError as error:
        raise NotStored(
            str(place), f"the map could not be stored: {error.strerror}", remedy="copy the bundle"
        ) from error
    return place


def _gist(found: Diagnosis) -> tuple[object, ...]:
    """Return a diagnosis without names."""
    return (
        found.where,
        found.signature,
        found.confidence,
        tuple((each.where, each.signature) for each in found.secondary),
        tuple(each.signature for each in found.ruled_out),
        tuple(each.signature for each in found.cannot_tell),
        len(found.objects),
    )
