"""The JSON that is printed for programs; its keys are relied on from outside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from autopsy.diagnose.diagnosis import UNKNOWN, Advice, Diagnosis, KnownBug, Unproven
from autopsy.facts.cite import Cite

if TYPE_CHECKING:
    from autopsy.commands.ending import Ended
    from autopsy.commands.import_evidence import ImportedBundle
    from autopsy.target.ps import ListedVm
    from autopsy.watch.model import Round


class TargetAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Which process it was."""

    pid: int
    name: str
    manager: str
    qemu_version: str
    build_id: str


class VmAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the VM lived on until any kill of ours; else the step or the question that it ended after."""

    alive: bool
    ended_after: str


class StepAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """How one step went."""

    name: str
    outcome: str
    why: str
    ms: float


class SecondaryAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is wrong beside the primary cause."""

    where: str
    signature: str
    headline: str
    objects: tuple[str, ...]


class CauseAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One of several causes that do not wait for one another."""

    where: str
    signature: str
    headline: str
    objects: tuple[str, ...]


class RuledOutAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A signature that it is not."""

    signature: str
    why: str


class CannotTellAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A signature that the evidence does not decide."""

    signature: str
    missing: str


class VerdictAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Where the I/O is stuck."""

    where: str
    signature: str
    confidence: str
    headline: str
    objects: tuple[str, ...]
    since: str
    secondary: tuple[SecondaryAnswer, ...]
    causes: tuple[CauseAnswer, ...]
    advice: tuple[Advice, ...]
    kill: str
    known_bugs: tuple[KnownBug, ...]
    cites: tuple[Cite, ...]
    ruled_out: tuple[RuledOutAnswer, ...]
    cannot_tell: tuple[CannotTellAnswer, ...]


class KillAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the VM was killed; `how` says by what means, or why it was not."""

    asked: bool
    done: bool
    how: str


class StartAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the VM was started again after its kill; `how` says by what means, or why it was not."""

    asked: bool
    done: bool
    how: str


class CaptureAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What `capture --json` prints."""

    bundle: str
    report: str
    sha256: str
    target: TargetAnswer
    vm: VmAnswer
    steps: tuple[StepAnswer, ...]
    stop_ms: float
    verdict: VerdictAnswer | None
    kill: KillAnswer
    start: StartAnswer
    notes: tuple[str, ...]


def answer(ended: Ended) -> str:
    """Return the one object that `capture --json` prints."""
    captured = ended.captured
    record = captured.target.record
    return as_text(
        CaptureAnswer(
            bundle=str(captured.sealed.path),
            report=str(captured.report or ""),
            sha256=captured.sealed.sha256,
            target=TargetAnswer(
                pid=record.pid,
                name=record.name,
                manager=record.manager,
                qemu_version=record.qemu_version,
                build_id=record.build_id,
            ),
            vm=VmAnswer(alive=captured.end is None, ended_after=captured.end.after if captured.end else ""),
            steps=tuple(
                StepAnswer(
                    name=step.name,
                    outcome=step.outcome,
                    why=step.why,
                    ms=round((step.end_ns - step.start_ns) / 1e6, 1),
                )
                for step in captured.steps
            ),
            stop_ms=round(captured.stop_ms, 3),
            verdict=verdict(captured.diagnosis) if captured.diagnosis else None,
            kill=KillAnswer(asked=ended.kill_asked, done=ended.kill_done, how=ended.kill_words),
            start=StartAnswer(asked=ended.start_asked, done=ended.start_done, how=ended.start_words),
            notes=captured.notes,
        )
    )


def verdict(diagnosis: Diagnosis) -> VerdictAnswer:
    """Return the part of a diagnosis that programs rely on."""
    return VerdictAnswer(
        where=diagnosis.where,
        signature=diagnosis.signature,
        confidence=diagnosis.confidence,
        headline=diagnosis.headline,
        objects=diagnosis.objects,
        since=diagnosis.since,
        causes=tuple(
            CauseAnswer(where=one.where, signature=one.signature, headline=one.headline, objects=one.objects)
            for one in diagnosis.causes
        ),
        secondary=tuple(
            SecondaryAnswer(where=one.where, signature=one.signature, headline=one.headline, objects=one.objects)
            for one in diagnosis.secondary
        ),
        advice=diagnosis.advice,
        kill=diagnosis.kill,
        known_bugs=diagnosis.known_bugs,
        cites=diagnosis.cites,
        ruled_out=tuple(RuledOutAnswer(signature=one.signature, why=one.why) for one in diagnosis.ruled_out),
        cannot_tell=tuple(
            CannotTellAnswer(signature=one.signature, missing=_missing(one)) for one in diagnosis.cannot_tell
        ),
    )


def _missing(one: Unproven) -> str:
    """Return what is missing; where a limit left it out, no signature's name says of what it is."""
    return f"{one.text}: {one.missing}" if one.signature == UNKNOWN else one.missing


def verdict_json(diagnosis: Diagnosis) -> str:
    """Return what `analyze --json` prints."""
    return as_text(verdict(diagnosis))


class ImportAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What `import --json` prints; `source` says of each file what it was."""

    bundle: str
    report: str
    sha256: str
    source: tuple[str, ...]
    verdict: VerdictAnswer
    notes: tuple[str, ...]


def import_json(done: ImportedBundle) -> str:
    """Return the one object that `import --json` prints."""
    return as_text(
        ImportAnswer(
            bundle=str(done.sealed.path),
            report=str(done.report or ""),
            sha256=done.sealed.sha256,
            source=done.source,
            verdict=verdict(done.diagnosis),
            notes=(*done.notes, *done.diagnosis.next_steps),
        )
    )


def census_json(vms: tuple[ListedVm, ...]) -> str:
    """Return what `ps --json` prints: a list of VMs."""
    return as_text(vms)


def as_text(value: object) -> str:
    """Return a value as JSON that people can read, too."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


class WatchedVmAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One VM of `watch --once --json`: these keys are relied on from outside."""

    name: str
    pid: int
    state: str
    stalled: bool
    kind: str
    oldest_unmoved_seconds: float
    requests_in_flight: int | None


class WatchAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What `watch --once --json` prints."""

    vms: tuple[WatchedVmAnswer, ...]


def watch_json(last: Round) -> str:
    """Return what `watch --once --json` prints."""
    answer = WatchAnswer(
        vms=tuple(
            WatchedVmAnswer(
                name=vm.name,
                pid=vm.pid,
                state=vm.state.value,
                stalled=vm.stalled is not None,
                kind=vm.stalled.value if vm.stalled else "",
                oldest_unmoved_seconds=round(vm.oldest_unmoved_seconds, 1),
                requests_in_flight=vm.requests_in_flight,
            )
            for vm in last.vms
        )
    )
    return as_text(answer)
