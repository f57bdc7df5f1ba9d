"""The report for programs: the whole diagnosis with the manifest's essentials, and its JSON schema."""

from __future__ import annotations

from typing import Any

import msgspec

from autopsy.bundle.manifest import Clocks, Host, Imported, Manifest, StepRecord, TargetRecord
from autopsy.bundle.vm_end import VmEnd
from autopsy.diagnose.diagnosis import Diagnosis

VERSION = 1


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """What `autopsy report --format json` prints. `version` counts changes of its keys; `kill` may be empty.

    `end` is how the VM ended by itself, null where it lived on; `imported` what others took, null for a capture.
    """

    version: int
    autopsy: str
    bundle_schema: int
    began: Clocks
    ended: Clocks
    host: Host
    target: TargetRecord
    steps: tuple[StepRecord, ...]
    notes: tuple[str, ...]
    stop_ms: float
    kill: str
    end: VmEnd | None
    imported: Imported | None
    diagnosis: Diagnosis


def document(manifest: Manifest, diagnosis: Diagnosis, *, kill: str = "") -> str:
    """Return the report as JSON."""
    whole = Document(
        version=VERSION,
        autopsy=manifest.autopsy,
        bundle_schema=manifest.schema,
        began=manifest.began,
        ended=manifest.ended,
        host=manifest.host,
        target=manifest.target,
        steps=manifest.steps,
        notes=manifest.notes,
        stop_ms=round(sum(step.stop_ns for step in manifest.steps) / 1e6, 3),
        kill=kill,
        end=manifest.end,
        imported=manifest.imported,
        diagnosis=diagnosis,
    )
    return _text(_encodable(msgspec.to_builtins(whole)))


def schema() -> str:
    """Return the JSON schema of the document."""
    return _text(msgspec.json.schema(Document))


def _encodable(value: Any) -> Any:  # noqa: ANN401 - JSON
    """Write bytes that are no UTF-8, which file names may hold, as escapes: JSON has no place for them."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {key: _encodable(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_encodable(member) for member in value]
    return value


def _text(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"
