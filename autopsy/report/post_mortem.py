"""Drafts a post-mortem: what the evidence tells is filled in, what only a person knows is marked."""

from __future__ import annotations

from collections.abc import Iterator

from autopsy.bundle.manifest import Manifest
from autopsy.bundle.vm_end import in_words
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.queries.requests import title
from autopsy.diagnose.queries.silence import silence_of
from autopsy.diagnose.seen_before import seen_stall
from autopsy.facts.cite import Known
from autopsy.facts.model.facts import Facts
from autopsy.report.clock_text import Calendar, calendar
from autopsy.report.markdown import cited, code, folded, link, ours, plain, row
from autopsy.report.units import duration, milliseconds
from autopsy.report.wording import PLACES, SURE, SURE_OF_NOTHING, apart, stalled_for


def post_mortem(
    manifest: Manifest, facts: Facts, diagnosis: Diagnosis, *, kill: str, bundle: str, seen: str = ""
) -> str:
    """Return the draft as Markdown; `bundle` names the evidence, `kill` is what happened after the seal.

    `seen` says how often others like it were met.
    """
    when = calendar(manifest.began)
    began = when.utc(manifest.began.monotonic_ns, digits=0)
    parts = (
        (f"# {began[:10]}: {plain(manifest.target.name)}: {ours(diagnosis.headline)}", ""),
        (
            f"> Draft by autopsy {plain(manifest.autopsy)} from the evidence in {code(bundle)}.",
            "> Lines with **TO FILL IN** are for a person; everything else is read from the evidence.",
            "",
        ),
        tuple(_impact(manifest, facts, diagnosis, kill, when)),
        (f"- Seen before: {plain(seen)}.", "") if seen else (),
        tuple(_timeline(manifest, facts, diagnosis, kill, when)),
        tuple(_detection(facts)),
        tuple(_root_cause(diagnosis)),
        tuple(_ruled_out(diagnosis)),
        tuple(_not_proved(diagnosis)),
        tuple(_fixes(diagnosis)),
        tuple(_follow_ups(diagnosis)),
        tuple(_footprint(diagnosis)),
    )
    return "\n".join(line for part in parts for line in part).rstrip() + "\n"


def _impact(manifest: Manifest, facts: Facts, diagnosis: Diagnosis, kill: str, when: Calendar) -> Iterator[str]:
    target = manifest.target
    yield from ("## Impact", "")
    yield "- **TO FILL IN**: who and what was affected, from when to when (UTC), and what was lost."
    version = plain(target.qemu_version) or "of unknown version"
    if manifest.imported is not None:
        names = ", ".join(plain(file.name) for file in manifest.imported.files)
        yield f"- VM {plain(target.name)} (pid {target.pid or 'unknown'}); others took the evidence: {names}."
    else:
        yield f"- VM {plain(target.name)} ({target.manager}, pid {target.pid}) on host {plain(manifest.host.name)}."
        yield f"- QEMU {version}, Linux {plain(manifest.host.kernel)}, {plain(manifest.host.distribution)}."
    stalled = stalled_for(facts, diagnosis)
    yield f"- Stalled: {plain(stalled.words)}{cited(stalled.cites)}."
    yield f"- {_killed(manifest, kill, when)}"
    yield ""


def _killed(manifest: Manifest, kill: str, when: Calendar) -> str:
    moment, colon, rest = kill.partition(": ")
    if not colon and manifest.end is not None:
        return f"Not killed: {plain(in_words(manifest.end))}. **TO FILL IN**: how the VM was brought back."
    if not colon and manifest.imported is not None:
        return "**TO FILL IN**: how the VM was brought back."
    if not colon:
        return "Not killed when this was drafted. **TO FILL IN**: how the VM was brought back."
    return f"Recovery: {plain(when.both(moment))}: {plain(rest)}. **TO FILL IN**: when the guest was up again."


def _timeline(manifest: Manifest, facts: Facts, diagnosis: Diagnosis, kill: str, when: Calendar) -> Iterator[str]:
    zone = f"; the host's own clock runs {plain(manifest.began.zone)}" if manifest.imported is None else ""
    yield from (f"## Timeline (UTC{zone})", "")
    yield "- **TO FILL IN**: the last sign of life; changes to the VM or its storage before it (limits, snapshots,"
    yield "  backups, migrations); the first alert; who noticed."
    yield from _of_the_vm(manifest, facts, diagnosis, when)
    if isinstance(facts.monitor.died_at, Known):
        asked = facts.monitor.died_at.value.exchange
        yield f"- {when.utc(asked.asked_ns)[11:]}: QMP did not answer {code(asked.question)} any more"
    if manifest.end is not None:
        yield f"- {when.utc(manifest.end.seen_ns)[11:]}: {plain(in_words(manifest.end))}"
    moment, colon, rest = kill.partition(": ")
    if colon:
        yield f"- {plain(when.both(moment))}: {plain(rest)}"
    yield from ("- **TO FILL IN**: the recovery, and the first sign of life after it.", "")
    yield from folded("The steps of the capture", _steps(manifest, when))


def _of_the_vm(manifest: Manifest, facts: Facts, diagnosis: Diagnosis, when: Calendar) -> Iterator[str]:
    """Yield when the VM began, when its disk completed its last request, and when it was first seen stuck."""
    if manifest.imported is not None:
        return
    if facts.vm.started_seconds:
        yield f"- about {when.utc(int(facts.vm.started_seconds * 1e9), digits=0)}: this QEMU began"
    stuck = {path.disk for path in diagnosis.paths if path.is_stuck}
    for disk in facts.disks.value if isinstance(facts.disks, Known) else ():
        if title(disk) in stuck and (silence := silence_of(disk)) and isinstance(facts.times.second_ns, Known):
            last = when.utc(facts.times.second_ns.value - silence.idle_ns, digits=0)
            yield f"- about {last}: disk {plain(title(disk))} completed its last request{cited((silence.cite,))}"
    if (seen := seen_stall(facts)) is not None:
        yield f"- {when.utc(seen.began_ns, digits=0)}: as a watch saw, {seen.what} from then on{cited((seen.cite,))}"
    words = "looked at" if diagnosis.where == "none" else "seen stuck"
    yield f"- {when.utc(facts.times.first_ns, digits=0)}: first {words}, by this capture"


def _steps(manifest: Manifest, when: Calendar) -> Iterator[str]:
    for step in manifest.steps if manifest.imported is None else ():
        line = f"- {when.utc(step.start_ns)[11:]}: {code(step.name)}: {step.outcome}, "
        line += milliseconds((step.end_ns - step.start_ns) / 1e6)
        line += f"; the VM stood still for {step.stop_ns / 1e6:.2f} ms" if step.stop_ns else ""
        yield line + (f"; {plain(step.why)}" if step.why and step.outcome != "Collected" else "")


def _detection(facts: Facts) -> Iterator[str]:
    yield from ("## Detection", "")
    yield "- **TO FILL IN**: how it was noticed, by whom or what, and how long after the stall began."
    alive = facts.monitor.alive
    if isinstance(alive, Known):
        words = "answered QMP: a check that only asks for its status saw nothing"
        yield f"- QEMU {words if alive.value else 'did not answer QMP'}{cited((alive.cite,))}."
    yield ""
    yield from folded("What each disk completed meanwhile", _completed(facts))


def _completed(facts: Facts) -> Iterator[str]:
    for disk in facts.disks.value if isinstance(facts.disks, Known) else ():
        if isinstance(disk.completed, Known):
            yield (
                f"- Disk {plain(disk.name)} completed {disk.completed.value} requests in "
                f"{duration(apart(facts))} of looking{cited((disk.completed.cite,))}."
            )


def _root_cause(diagnosis: Diagnosis) -> Iterator[str]:
    sure = (SURE_OF_NOTHING if diagnosis.where == "none" else SURE)[diagnosis.confidence]
    yield from ("## Root cause", "")
    yield f"**{ours(diagnosis.headline)}.** {PLACES[diagnosis.where]} ({code(diagnosis.signature)})."
    yield f"This is {diagnosis.confidence}: {sure}."
    yield ""
    for number, claim in enumerate(diagnosis.chain, start=1):
        yield f"{number}. {ours(claim.text)}{cited(claim.cites)}"
    if diagnosis.secondary:
        yield from ("", "Effects of it, and what else is wrong:", "")
        for effect in diagnosis.secondary:
            because = f" because of {code(effect.because_of)}" if effect.because_of else ""
            yield f"- {ours(effect.headline)} ({effect.where}, {code(effect.signature)}{because}){cited(effect.cites)}"
    for bug in diagnosis.known_bugs:
        yield from ("", f"Known bug: {plain(bug.sentence)}{link(bug.link)}")
    yield ""


def _ruled_out(diagnosis: Diagnosis) -> Iterator[str]:
    yield from ("## Ruled out (evidence, not vibes)", "")
    if not diagnosis.ruled_out:
        yield from ("- Nothing could be ruled out.", "")
        return
    reasons: dict[str, list[int]] = {}
    for place, signature in enumerate(diagnosis.ruled_out):
        reasons.setdefault(signature.why, []).append(place)
    lines = []
    for why, places in reasons.items():
        alike = [diagnosis.ruled_out[place] for place in places]
        lines.append(
            f"- **Not that {'; '.join(ours(known.text) for known in alike)}**: {ours(why)}{cited(alike[0].cites)}."
        )
    yield from (f"{len(diagnosis.ruled_out)} known ways to hang are not it.", "")
    yield from folded("Which, and why not", lines)


def _not_proved(diagnosis: Diagnosis) -> Iterator[str]:
    yield from ("## What we could not prove", "")
    missing: dict[str, list[str]] = {}
    for signature in diagnosis.cannot_tell:
        missing.setdefault(signature.missing, []).append(ours(signature.text))
    lines = [
        f"- Whether {'; whether '.join(texts)}. It would be told by: {ours(what)}." for what, texts in missing.items()
    ]
    if lines:
        yield from (f"{len(diagnosis.cannot_tell)} known ways to hang could be neither shown nor ruled out.", "")
        yield from folded("Which, and what would tell", lines)
    if not missing:
        yield "- Every known signature could be either shown or ruled out."
    yield ""
    yield from folded(
        "What nobody can tell once the VM is killed", (f"- {ours(question)}" for question in diagnosis.lost_by_kill)
    )


def _fixes(diagnosis: Diagnosis) -> Iterator[str]:
    yield from ("## Fixes", "", row("When", "What", "Why"), row("---", "---", "---"))
    for advice in diagnosis.advice:
        yield row(advice.when, code(advice.command), ours(advice.why))
    for bug in diagnosis.known_bugs:
        if bug.in_this_build != "fixed" and bug.fixed_in:
            yield row(
                "later",
                f"upgrade QEMU to one of {', '.join(map(plain, bug.fixed_in))}: {plain(bug.title)}",
                "to be decided",
            )
    yield row("**TO FILL IN**", "what was done, by whom, and how it was verified", "")
    yield ""


def _follow_ups(diagnosis: Diagnosis) -> Iterator[str]:
    yield from ("## Open follow-ups", "")
    yield "- **TO FILL IN**: an alert that would have noticed it sooner (completed requests at 0 while QMP answers)."
    if diagnosis.cannot_tell:
        yield "- Have at hand, before it happens again, what could not be told this time (above)."
    yield from ("- **TO FILL IN**: lessons.", "")


def _footprint(diagnosis: Diagnosis) -> Iterator[str]:
    yield from ("## What the capture did to the VM", "")
    for mark in diagnosis.footprint:
        yield f"- {ours(mark)}"
    for claim in diagnosis.side_effects:
        yield f"- {ours(claim.text)}{cited(claim.cites)}"
