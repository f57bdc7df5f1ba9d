"""Makes a copy of a bundle that can be shown to strangers: no memory, no secrets, pseudonyms for names."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import msgspec

from autopsy import __version__
from autopsy.bundle import layout
from autopsy.bundle.archive import safe_name
from autopsy.bundle.manifest import Manifest, encode_manifest
from autopsy.bundle.reader import Bundle, OpenedBundle, hold
from autopsy.bundle.readme import readme
from autopsy.bundle.seal import PackedAhead, Sealed, pack_ahead, seal
from autopsy.dataclass import dataclass
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.errors import NotStored
from autopsy.facts.gather import gather_facts
from autopsy.facts.host import STORAGE_WORDS, VM_WORDS
from autopsy.files import private
from autopsy.linux.child import ChildFailed, ChildTimedOut, collect, spawn
from autopsy.linux.confine.confined import AnswerPipe
from autopsy.linux.tasks.forking import end
from autopsy.redact.files import left_out, look, look_again, manifest
from autopsy.redact.pseudonyms import Pseudonyms
from autopsy.report.boxed import SECONDS, begun_in_box, in_box
from autopsy.report.store import write_answers

# What is said of the whole, by names that no file of a bundle can have.
MANIFEST_TOLD, TABLE = "*manifest", "*table"
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
    held = hold(path)
    staging = Path(tempfile.mkdtemp(prefix=".redacting-", dir=(output or path).absolute().parent))
    try:
        with _diagnosed(path) as before:
            hidden, table = _staged(held, staging)
            with _packing(staging, hidden) as packed:
                diagnosis = write_answers(staging).diagnosis
                destination = (output or path.absolute().with_name(_name(hidden))).absolute()
                sealed = seal(staging, destination, hidden, ahead=packed())
            same = _gist(diagnosis) == _gist(before())
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        _let_go(held)
    return Redacted(sealed, _store_map(path.absolute(), table), same)


def _staged(held: OpenedBundle, staging: Path) -> tuple[Manifest, bytes]:
    """Read and redact in the sandbox, and store each file; return the manifest that it has now, and the table."""
    last: dict[str, bytes] = {}

    def hear(name: str, data: bytes) -> bytes:
        if name in {MANIFEST_TOLD, TABLE}:
            last[name] = data
        else:
            private.store_below(staging, safe_name(name), data)
        return b""

    in_box(
        lambda _box, line: _redact(held.read(), line),
        source=str(held.path),
        seconds=SECONDS,
        keep=_kept_open(held),
        hear=hear,
    )
    hidden = msgspec.json.decode(last[MANIFEST_TOLD], type=Manifest)
    private.store(staging / layout.MANIFEST, encode_manifest(hidden))
    private.store(staging / layout.README, readme(__version__, hidden.target, hidden.began).encode())
    return hidden, last[TABLE]


@contextmanager
def _packing(staging: Path, hidden: Manifest) -> Iterator[Callable[[], PackedAhead | None]]:
    """Have what is redacted packed while it is diagnosed; what is yielded waits for that, None where it went wrong."""
    with ExitStack() as stack:
        child = spawn(lambda: msgspec.json.encode(pack_ahead(staging, hidden, frozenset())))
        stack.callback(end, child)

        def packed() -> PackedAhead | None:
            stack.pop_all()  # it is ended once it is waited for
            with suppress(ChildTimedOut, ChildFailed, msgspec.DecodeError):
                return msgspec.json.decode(collect(child, SECONDS), type=PackedAhead)
            return None

        yield packed


@contextmanager
def _diagnosed(path: Path) -> Iterator[Callable[[], Diagnosis]]:
    """Have the original diagnosed meanwhile, in a sandbox of its own; what is yielded waits for the diagnosis."""
    held = hold(path)  # once more: two processes that read by one descriptor would take turns at one file
    try:
        with begun_in_box(
            lambda _box, _line: msgspec.json.encode(diagnose(gather_facts(held.read()))),
            source=str(path),
            seconds=SECONDS,
            keep=_kept_open(held),
        ) as answer:
            yield lambda: msgspec.json.decode(answer(), type=Diagnosis)
    finally:
        _let_go(held)


def _kept_open(held: OpenedBundle) -> tuple[int, ...]:
    return () if held.descriptor is None else (held.descriptor,)


def _let_go(held: OpenedBundle) -> None:
    if held.descriptor is not None:
        os.close(held.descriptor)


def _redact(bundle: Bundle, line: AnswerPipe) -> bytes:
    hide = Pseudonyms(kept=_kept(bundle))
    names = [name for name in sorted(bundle.names()) if not left_out(name)]
    manifest(bundle.manifest, hide)
    looked = {name: look(name, bundle.read(name), hide, _of_interest) for name in names}
    hide.learned()
    hidden = manifest(bundle.manifest, hide)
    hidden = msgspec.structs.replace(hidden, notes=(*hidden.notes, NOTE), files=())
    for name in names:
        line.tell(name, look_again(name, looked[name], hide, _of_interest))
    line.tell(MANIFEST_TOLD, encode_manifest(hidden))
    line.tell(TABLE, msgspec.json.format(msgspec.json.encode(hide.table()), indent=1) + b"\n")
    return b""


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
