"""What `list`, `show` and `rm` print for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from autopsy.cli.json_output import KillAnswer, VerdictAnswer, as_text, verdict
from autopsy.commands.stored import ShownBundle
from autopsy.store.entries import StoredBundle
from autopsy.store.removal import Room

Kept = Literal["asked for", "expendable", "elsewhere"]


class StoredAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One bundle. `trouble` says why it has no verdict, where it cannot be read; `size` is with what stands beside."""

    name: str
    bundle: str
    report: str
    size: int
    kept: Kept
    vm: str
    manager: str
    pid: int
    began: str
    verdict: VerdictAnswer | None
    kill: KillAnswer
    trouble: str


class ListAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What `list --json` prints; sizes are in bytes."""

    store: str
    used: int
    most: int
    captures: tuple[StoredAnswer, ...]


class RemovedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What `rm --json` prints."""

    removed: tuple[str, ...]
    bytes: int
    dry_run: bool


def list_json(store: str, room: Room | None, shown: Sequence[ShownBundle]) -> str:
    """Return what `list --json` prints."""
    captures = tuple(map(_answer, shown))
    used, most = (room.used, room.most) if room else (0, 0)
    return as_text(ListAnswer(store=store, used=used, most=most, captures=captures))


def show_json(capture: ShownBundle) -> str:
    """Return what `show --json` prints."""
    return as_text(_answer(capture))


def removed_json(removed: Sequence[StoredBundle], *, dry_run: bool) -> str:
    """Return what `rm --json` prints."""
    names = tuple(str(entry.bundle) for entry in removed)
    return as_text(RemovedAnswer(removed=names, bytes=sum(entry.size for entry in removed), dry_run=dry_run))


def _answer(capture: ShownBundle) -> StoredAnswer:
    manifest, diagnosis, kill = capture.words.manifest, capture.words.diagnosis, capture.kill
    target = manifest.target if manifest else None
    kept: Kept = "elsewhere"
    if capture.entry is not None:
        kept = "expendable" if capture.entry.expendable else "asked for"
    return StoredAnswer(
        name=capture.entry.name if capture.entry else capture.bundle.name,
        bundle=str(capture.bundle),
        report=str(capture.report or ""),
        size=capture.size,
        kept=kept,
        vm=target.name if target else "",
        manager=target.manager if target else "",
        pid=target.pid if target else 0,
        began=manifest.began.utc if manifest else "",
        verdict=verdict(diagnosis) if diagnosis else None,
        kill=KillAnswer(asked=kill is not None, done=bool(kill and kill.gone), how=kill.how if kill else ""),
        trouble=capture.words.trouble,
    )
