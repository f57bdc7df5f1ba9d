"""Makes a copy of a bundle that can be shown to strangers: no memory, no secrets, pseudonyms for names."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from autopsy import __version__
from autopsy.bundle import layout
from autopsy.bundle.archive import safe_name
from autopsy.bundle.manifest import Manifest
from autopsy.bundle.reader import Bundle, hold
from autopsy.bundle.readme import readme
from autopsy.bundle.seal import Sealed, encode_manifest, seal
from autopsy.dataclass import dataclass
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.errors import NotStored
from autopsy.facts.gather import gather_facts
from autopsy.facts.host import STORAGE_WORDS, VM_WORDS
from autopsy.files import private
from autopsy.linux.confine.confined import AnswerPipe
from autopsy.redact.files import left_out, manifest, redacted
from autopsy.redact.pseudonyms import Pseudonyms
from autopsy.report.boxed import SECONDS, in_box
from autopsy.report.store import write_answers

# What is said of the whole, by names that no file of a bundle can have.
MANIFEST_TOLD, DIAGNOSIS_BEFORE, TABLE = "*manifest", "*diagnosis", "*table"
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
    files: dict[str, bytes] = {}

    def hear(name: str, data: bytes) -> bytes:
        files[name] = data
        return b""

    _boxed(path, hear)
    hidden = msgspec.json.decode(files.pop(MANIFEST_TOLD), type=Manifest)
    before = msgspec.json.decode(files.pop(DIAGNOSIS_BEFORE), type=Diagnosis)
    table = files.pop(TABLE)
    destination = (output or path.absolute().with_name(_name(hidden))).absolute()
    staging = Path(tempfile.mkdtemp(prefix=".redacting-", dir=destination.parent))
    try:
        for name, data in files.items():
            private.store_below(staging, safe_name(name), data)
        private.store(staging / layout.MANIFEST, encode_manifest(hidden))
        private.store(staging / layout.README, readme(__version__, hidden.target, hidden.began).encode())
        diagnosis = write_answers(staging).diagnosis
        sealed = seal(staging, destination, hidden)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Redacted(sealed, _store_map(path.absolute(), table), same=_gist(diagnosis) == _gist(before))


def _boxed(path: Path, hear: Callable[[str, bytes], bytes]) -> None:
    """Read and redact in the sandbox; `hear` is given each file, and what is to be known of the whole."""
    held = hold(path)
    try:
        in_box(
            lambda _box, line: _redact(held.read(), line),
            source=str(path),
            seconds=SECONDS,
            keep=() if held.descriptor is None else (held.descriptor,),
            hear=hear,
        )
    finally:
        if held.descriptor is not None:
            os.close(held.descriptor)


def _redact(bundle: Bundle, line: AnswerPipe) -> bytes:
    hide = Pseudonyms(kept=_kept(bundle))
    names = [name for name in sorted(bundle.names()) if not left_out(name)]
    manifest(bundle.manifest, hide)
    plain = {name for name in names if _file(bundle, name, hide) == bundle.read(name)}
    hide.learned()
    hidden = manifest(bundle.manifest, hide)
    hidden = msgspec.structs.replace(hidden, notes=(*hidden.notes, NOTE), files=())
    files = {name: _file(bundle, name, hide, plain=name in plain) for name in names}
    for name, data in files.items():
        line.tell(name, data)
    line.tell(MANIFEST_TOLD, encode_manifest(hidden))
    line.tell(DIAGNOSIS_BEFORE, msgspec.json.encode(diagnose(gather_facts(bundle))))
    line.tell(TABLE, msgspec.json.format(msgspec.json.encode(hide.table()), indent=1) + b"\n")
    return b""


def _file(bundle: Bundle, name: str, hide: Pseudonyms, *, plain: bool = False) -> bytes:
    """Return a file redacted; one that is `plain` had nothing to be hidden before all names were known."""
    data = bundle.read(name)
    return data if plain and not hide.names_stand_in(data) else redacted(name, data, hide, _of_interest)


def _kept(bundle: Bundle) -> frozenset[str]:
    """Return the build ids, by which anybody finds the public symbols."""
    modules = bundle.read(layout.evidence(layout.GDB_THREADS, layout.MODULES))
    try:
        known = [str(module.get("build_id", "")) for module in msgspec.json.decode(modules)] if modules else []
    except (msgspec.DecodeError, AttributeError, RecursionError):
        known = []
    return frozenset(filter(None, (*known, bundle.manifest.target.build_id)))


def _of_interest(line: str) -> bool:
    small = line.lower()
    return any(word in small for word in OF_INTEREST)


def _name(hidden: Manifest) -> str:
    moment = "".join(character for character in hidden.began.utc[:19] if character.isdigit() or character == "T")
    return f"autopsy-redacted-{moment}Z.tar.zst"


def _store_map(path: Path, data: bytes) -> Path:
    place = path.with_name(f"{path.name}.redaction.json")
    try:
        private.publish(place, data)
    except OSError as error:
        raise NotStored(
            str(place), f"the map could not be stored: {error.strerror}", remedy="copy the bundle"
        ) from error
    return place


def _gist(diagnosis: Diagnosis) -> tuple[object, ...]:
    """Return a diagnosis without names."""
    return (
        diagnosis.where,
        diagnosis.signature,
        diagnosis.confidence,
        tuple((claim.where, claim.signature) for claim in diagnosis.secondary),
        tuple(signature.signature for signature in diagnosis.ruled_out),
        tuple(signature.signature for signature in diagnosis.cannot_tell),
        len(diagnosis.objects),
    )
