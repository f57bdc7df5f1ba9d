"""Fills the commands of a runbook for this VM, and adds what holds for every verdict of its kind."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from functools import cache

from autopsy.dataclass import dataclass
from autopsy.diagnose import imported, runbooks
from autopsy.diagnose.advice import disks, slots
from autopsy.diagnose.advice.managers import Hand
from autopsy.diagnose.diagnosis import Advice, KillEffect, KnownBug, When
from autopsy.diagnose.queries.quiet import nothing_looks_stuck
from autopsy.facts.cite import Unknown
from autopsy.facts.model.facts import Facts, Origin
from autopsy.facts.subjects import Subject

LINE = re.compile(r"(now|if-not|never|later): `([^`]+)`: (.+)")
SLOT = re.compile(r"\{([a-z0-9-]+)\}")
WORD = re.compile(r"""(?:'[^']*'|"[^"]*"|[^\s'"])+""")
WHENS: tuple[When, ...] = ("now", "if-not", "never", "later")
MOST = 3  # lines that one command of a runbook may become, and lines of one kind that a person reads


@dataclass(frozen=True, slots=True)
class Template:
    """One command of a runbook with its slots open."""

    when: When
    command: str
    why: str


@cache
def templates(signature: str) -> tuple[Template, ...]:
    """Return the commands of a signature's runbook."""
    matches = map(LINE.fullmatch, runbooks.lines(runbooks.written_for(signature), runbooks.COMMANDS))
    kinds: dict[str, When] = {when: when for when in WHENS}
    return tuple(Template(kinds[match[1]], match[2], match[3]) for match in matches if match)


def advise(
    signature: str,
    objects: tuple[Subject, ...],
    facts: Facts,
    *,
    kill: KillEffect,
    proven: bool,
    known_bugs: tuple[KnownBug, ...],
) -> tuple[Advice, ...]:
    """Return what to do now, what if that does not help, what never, and what later.

    Imported evidence is of a process that is gone, or of another host: no command that names it is told.
    """
    if facts.origin is not Origin.CAPTURE:
        runbook = imported.runbook(facts, signature)
        more = templates(runbook) if runbook != signature else ()
        rest = (Advice(when=template.when, command=template.command, why=template.why) for template in more)
        return (*rest, *imported.commands(facts), *_upgrades(Hand(facts.vm).verbs()["upgrade"], known_bugs))
    hand = Hand(facts.vm)
    verbs = hand.verbs().beside(disks.verbs(facts, objects, hand))
    words = slots.words(facts, objects, hand)
    advised = [
        Advice(when=template.when, command=command, why=template.why)
        for template in templates(signature)
        for command in filled(template.command, verbs, words)[:MOST]
    ]
    calm = kill == "unknown" and nothing_looks_stuck(facts)
    if kill == "futile" or (kill == "needless" and proven) or calm:
        advised = [
            advice for advice in advised if advice.when == "never" or not advice.command.startswith(verbs["end"])
        ]
    if not any(advice.when in {"now", "if-not"} for advice in advised):
        asked = f"cat /proc/{facts.vm.pid}/cgroup"
        advised.append(
            Advice(when="now", command=asked, why="no manager of this host speaks for it: who owns its group does")
        )
    if isinstance(facts.vm.end, Unknown):  # what has ended needs no warning
        advised += _never(verbs["end"], kill, proven=proven)
    advised += _upgrades(verbs["upgrade"], known_bugs)
    unique = tuple({(advice.when, advice.command): advice for advice in advised}.values())
    return tuple(one for when in WHENS for one in [advice for advice in unique if advice.when == when][:MOST])


def filled(command: str, verbs: Mapping[str, str], words: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return a command once for each word that its slots can have, none where one has none.

    A slot that is a word of its own may stand for a whole command; what fills any other stays within its word.
    """
    names = dict.fromkeys(name for _, slots_in, _ in _words_of(command) for name in slots_in if name not in verbs)
    choices = {name: values for name in names if (values := words.get(name))}
    several = next((name for name, values in choices.items() if len(values) > 1), "")
    first = {name: values[0] for name, values in choices.items()}
    chosen = [{**first, several: value} for value in choices[several]] if several else [first]
    return tuple(filter(None, (_filled(command, verbs, choice) for choice in chosen)))


@cache
def _words_of(command: str) -> tuple[tuple[str, tuple[str, ...], str], ...]:
    """Return the words of a runbook's command, with the slots in each and what it is without its quotes."""
    words = ((word, tuple(SLOT.findall(word))) for word in WORD.findall(command))
    return tuple((word, names, "".join(shlex.split(word)) if names else word) for word, names in words)


def _filled(command: str, verbs: Mapping[str, str], words: Mapping[str, str]) -> str:
    parts = []
    for word, names, inside in _words_of(command):
        if not names:
            parts.append(word)  # the runbook's own, with its quotes, globs and operators
        elif word == f"{{{names[0]}}}" and names[0] in verbs:
            parts.append(verbs[names[0]])
        elif all(name in words for name in names):
            parts.append(shlex.quote(SLOT.sub(lambda slot: words[slot[1]], inside)))
        else:
            parts.append("")
    return " ".join(parts) if all(parts) else ""


def _never(end: str, kill: KillEffect, *, proven: bool) -> Iterator[Advice]:
    if kill == "futile":
        yield Advice(when="never", command=end, why="no signal reaches what hangs; who waits for it hangs too")
    if kill == "needless" and proven:
        yield Advice(when="never", command=end, why="a kill is not needed, and loses what the guest has not written")


def _upgrades(upgrade: str, known_bugs: tuple[KnownBug, ...]) -> Iterator[Advice]:
    for bug in known_bugs:
        if bug.in_this_build == "affected" and bug.fixed_in and upgrade:
            fixed = ", ".join(bug.fixed_in)
            yield Advice(when="later", command=upgrade, why=f"{bug.title}: fixed in {fixed}; then a full restart")
