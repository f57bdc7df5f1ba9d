"""Writes a bug report in the sections of QEMU's tracker: one screen, the rest folded, without whose machine it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from autopsy.bundle.manifest import Manifest
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.facts.cite import Known
from autopsy.facts.model.facts import Facts
from autopsy.redact.text import Redaction, redaction
from autopsy.report.markdown import block, code, link, ours, plain
from autopsy.report.proof.proofs import alike, with_the_others
from autopsy.report.stacks import Group, coroutine_groups, thread_groups
from autopsy.report.units import count, duration
from autopsy.report.wording import apart

MOST_GROUPS = 40
MOST_CLAIMS = 8
FEW_FRAMES = 6
OPEN_FRAMES = 12  # of the one stack that is not folded
NOT_QEMU = frozenset({"guest", "host", "peer", "vm-state", "none"})


def bug_report(manifest: Manifest, facts: Facts, diagnosis: Diagnosis) -> str:
    """Return the report as Markdown, redacted."""
    hide = redaction(manifest, facts)
    parts = (
        _before_it_is_posted(diagnosis, hide),
        _host(manifest, facts, hide),
        _guest(manifest),
        _problem(facts, diagnosis, hide),
        _steps(),
        _more(facts, diagnosis, hide),
    )
    return "\n".join(line for part in parts for line in part).rstrip() + "\n"


def _before_it_is_posted(diagnosis: Diagnosis, hide: Redaction) -> Iterator[str]:
    """Say what keeps this from being a bug of QEMU's, or from being a new one."""
    if diagnosis.where in NOT_QEMU or (diagnosis.kill == "needless" and diagnosis.where != "device"):
        yield f"> **Do not post this: it is not QEMU's fault.** {ours(hide.text(diagnosis.headline))}."
        yield from ("> What is below is for whoever owns that.", "")
    for bug in diagnosis.known_bugs:
        if bug.in_this_build == "affected" and bug.fixed_in:
            yield f"> **Upgrade first:** {plain(bug.sentence)}{link(bug.link)}"
            yield ""


def _host(manifest: Manifest, facts: Facts, hide: Redaction) -> Iterator[str]:
    host, target = manifest.host, manifest.target
    yield f"<!-- Drafted by autopsy {plain(manifest.autopsy)}. Redacted; read it once more before you post it. -->"
    yield from ("", "## Host environment")
    if manifest.imported is not None:
        yield from ("- Operating system: **TO FILL IN**", "- OS/kernel version: **TO FILL IN**")
    else:
        yield f"- Operating system: {plain(host.distribution)}"
        yield f"- OS/kernel version: Linux {plain(host.kernel)}"
        yield f"- Architecture: {plain(host.architecture)}, {host.cpus} CPUs"
    yield f"- QEMU flavor: {code(target.exe.rpartition('/')[2])}"
    yield f"- QEMU version: {plain(target.qemu_version) or 'unknown'} (build-id {code(target.build_id or 'unknown')})"
    if isinstance(facts.vm.arguments, Known):
        yield from _folded("QEMU command line", [*_arguments(facts.vm.arguments.value, hide)])
    else:
        yield f"- QEMU command line: not known: {plain(hide.text(facts.vm.arguments.why))}"
    yield ""


def _arguments(arguments: tuple[str, ...], hide: Redaction) -> Iterator[str]:
    """Yield an option with its value a line, each value redacted by itself."""
    line = ""
    for argument in arguments:
        shown = hide.text(argument)
        if argument.startswith("-") and line:
            yield f"{line} \\"
            line = ""
        line = f"{line} {shown}" if line else shown
    yield line


def _guest(manifest: Manifest) -> Iterator[str]:
    yield "## Emulated/Virtualized environment"
    yield "- Operating system: **TO FILL IN**"
    yield "- OS/kernel version: **TO FILL IN**"
    yield f"- Architecture: {plain(manifest.host.architecture)}"
    yield ""


def _problem(facts: Facts, diagnosis: Diagnosis, hide: Redaction) -> Iterator[str]:
    yield from ("## Description of problem", "")
    yield f"{ours(hide.text(diagnosis.headline))} ({diagnosis.confidence}; {code(diagnosis.signature)})."
    yield ""
    kinds = alike(diagnosis.chain)
    for claims in kinds[:MOST_CLAIMS]:
        yield f"- {ours(hide.text(with_the_others(claims)))}"
    if len(kinds) > MOST_CLAIMS:
        yield f"- {count(len(kinds) - MOST_CLAIMS, 'more finding')}: in the bundle's report"
    for claim in diagnosis.secondary[:MOST_CLAIMS]:
        yield f"- Besides: {ours(hide.text(claim.headline))}"
    for path in [path for path in diagnosis.paths if path.is_stuck][:1]:
        if path.is_stuck:
            branch = next((branch for branch in path.branches if branch.stuck_at is not None), None)
            along = path.hops if branch is None else (*path.hops[: branch.at + 1], *branch.hops)
            hops = (hop.name if hop.kind != "host" else "host" for hop in along)
            yield f"- Path: {plain(hide.text(' → '.join(hops)))}. {plain(hide.text(path.sentence))}"
    for bug in diagnosis.known_bugs:
        yield f"- It looks like a known bug: {plain(bug.title)}{link(bug.link)}; in this build: {bug.in_this_build}."
    if isinstance(facts.times.second_ns, Known):
        yield f"- The VM was looked at twice, {duration(apart(facts))} apart."
    yield ""


def _steps() -> Iterator[str]:
    yield from ("## Steps to reproduce", "1. **TO FILL IN**: how the VM is started", "2. **TO FILL IN**: its load", "")


def _more(facts: Facts, diagnosis: Diagnosis, hide: Redaction) -> Iterator[str]:
    yield from ("## Additional information", "")
    symbols = facts.symbols.value if isinstance(facts.symbols, Known) else "unknown"
    yield f"The stacks were taken from a frozen copy; names come from {code(symbols)}."
    threads, coroutines = thread_groups(facts, diagnosis), coroutine_groups(facts, diagnosis)
    every = (*threads, *coroutines)
    stuck, others = [group for group in every if group.stuck], [group for group in every if not group.stuck]
    for group in stuck[:1]:
        yield block(map(hide.text, _stack(group, OPEN_FRAMES)))
    stacks = [line for group in stuck[1:MOST_GROUPS] for line in (*_stack(group), "")]
    yield from _folded(f"{count(len(stuck) - 1, 'more stack')} of what is stuck", [*map(hide.text, stacks)])
    if diagnosis.waits.edges:
        label = {node.id: node.label for node in diagnosis.waits.nodes}
        lines = [
            f"{label.get(edge.waiter, '?')} -- {edge.label} --> {label.get(edge.holder, '?')}"
            + (" (part of a ring)" if edge.in_cycle else "")
            for edge in diagnosis.waits.edges
        ]
        yield from _folded("Who waits for whom", [*map(hide.text, lines)])
    idle = [line for group in others[:MOST_GROUPS] for line in _innermost(group)]
    if len(others) > MOST_GROUPS:
        idle.append(f"{len(others) - MOST_GROUPS} more")
    yield from _folded("The other threads and coroutines, each by its innermost frames", [*map(hide.text, idle)])
    ruled_out = count(len(diagnosis.ruled_out), "known way")
    yield from (
        "",
        f"{ruled_out} to hang were looked for and ruled out. The bundle has every stack whole, and the core.",
    )


def _stack(group: Group, most: int = 0) -> Iterator[str]:
    """Yield a stack; its first `most` frames, if there is a bound."""
    yield "; ".join(filter(None, (group.title, group.state, group.moved)))
    yield from (f"    kernel  {line}" for line in group.kernel)
    shown = group.frames[: most or len(group.frames)]
    for frame in shown:
        hint = f" ({frame.hint})" if frame.hint else ""
        yield f"    #{frame.number:<3} {frame.function or '??'} at {frame.place}{hint}"
    if len(shown) < len(group.frames):
        yield f"    {len(group.frames) - len(shown)} more"


def _innermost(group: Group) -> Iterator[str]:
    """Yield a line for a stack that nothing is wrong with."""
    frames = " < ".join(frame.function or "??" for frame in group.frames[:FEW_FRAMES])
    yield "; ".join(filter(None, (group.title, group.state))) + (f": {frames}" if frames else "")


def _folded(title: str, lines: Sequence[str]) -> Iterator[str]:
    """Yield what a reader unfolds; nothing where there is none. A list before it ends by an empty line."""
    if lines:
        yield from ("", f"<details><summary>{title}</summary>", "", block(lines), "", "</details>")
