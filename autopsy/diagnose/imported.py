"""Holds what is said of imported evidence to what one look at a part of a process can show."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import replace

from autopsy.diagnose import runbooks
from autopsy.diagnose.diagnosis import Advice
from autopsy.diagnose.frames.block_waits import called
from autopsy.diagnose.frames.catalogue import FROM_FRAMES
from autopsy.diagnose.frames.stacks import NamedStack, WaitKind, stacks
from autopsy.diagnose.queries.wording import sentence
from autopsy.diagnose.signature import CannotTell, Judgement, Match, RuledOut, Signature
from autopsy.facts import subjects
from autopsy.facts.cite import Known, Unknown
from autopsy.facts.model.facts import Facts, Origin, Role
from autopsy.facts.subjects import Subject

# A ring of locks with its owners is whole in one look: none of them can go on.
PROVES_ITSELF = frozenset(
    {"lock-cycle", "mutex-self-deadlock", "virtio-scsi-tmf-deadlock", "throttle-lock-self-deadlock"}
)
HEALTHY = "healthy"
NAMELESS = "imported"  # how an import calls a VM whose name nobody told
FEW_THREADS = 3  # every QEMU has its main, its RCU and a vCPU thread
UNKNOWN, UNKNOWN_OF_IMPORT = "unknown", "unknown-of-import"
NEXT_TIME = "Next time"
NONE = "None"  # how a runbook says that there is no such step


def signatures(facts: Facts, own: tuple[Signature, ...]) -> tuple[Signature, ...]:
    """Return what the facts are judged by: for imported evidence, by its frames as well."""
    return own if facts.origin is Origin.CAPTURE else (*own, *FROM_FRAMES)


def held_to(facts: Facts, signature: Signature, answer: Judgement) -> Judgement:
    """Return the answer as far as imported evidence carries it.

    What is not in a paste may yet be in the process: nothing is ruled out by that.
    """
    match facts.origin, answer:
        case Origin.CAPTURE, _:
            return answer
        case _, Match():
            if signature.id == HEALTHY:
                return CannotTell("whether anything moves: a second look (`autopsy capture`)")
            sure = answer.confidence == "proven" and signature.id in PROVES_ITSELF
            return answer if sure else replace(answer, confidence="consistent")
        case Origin.PASTE, RuledOut():
            return CannotTell(f"all of the process: in what was pasted, {answer.why}")
        case _, _:
            return answer


def lacking(facts: Facts) -> tuple[str, ...]:
    """Say what would have decided, and was not taken."""
    missing = []
    if isinstance(facts.threads, Known):
        if len(facts.threads.value) < FEW_THREADS:
            missing.append("every thread (`thread apply all bt`)")
        if not any(isinstance(thread.first, Known) for thread in facts.threads.value):
            missing.append("system calls and kernel stacks")
    else:
        missing.append("the threads' stacks")
    if isinstance(facts.coroutines, Unknown):
        missing.append("parked requests (coroutines have no thread)")
    if isinstance(facts.locks, Unknown):
        missing.append("who holds which lock")
    if isinstance(facts.disks, Unknown):
        missing.append("the disks and their counters")
    elif not any(isinstance(disk.stats, Known) for disk in facts.disks.value):
        missing.append("the disks' counters")
    return (*missing, "a second look, some seconds later")


def runbook(facts: Facts, signature: str) -> str:
    """Return whose runbook it is: what to do about an unknown cause is another thing where the VM is not here."""
    return UNKNOWN_OF_IMPORT if facts.origin is not Origin.CAPTURE and signature == UNKNOWN else signature


def next_steps(facts: Facts, steps: Iterable[str]) -> tuple[str, ...]:
    """Return the steps of a runbook; of imported evidence they hold as long as the VM still stands, wherever it is."""
    if facts.origin is Origin.CAPTURE:
        return tuple(steps)
    missing = ", ".join(lacking(facts))
    return (
        *(f"As long as it stands, on its own host: {step}" for step in steps if step != NONE),
        f"Next time, before anybody kills it: `autopsy capture VM` takes what is missing here: {missing}.",
        *runbooks.lines(runbooks.text(UNKNOWN_OF_IMPORT), NEXT_TIME),
    )


def commands(facts: Facts) -> tuple[Advice, ...]:
    """Return the command that takes it the next time."""
    missing = f"next time, before anybody kills it; it takes what is missing here: {', '.join(lacking(facts))}"
    if facts.vm.name in {"", NAMELESS} or facts.vm.name.startswith("-"):
        return (Advice(when="later", command="autopsy capture --help", why=missing),)
    return (Advice(when="later", command=f"autopsy capture {shlex.quote(facts.vm.name)}", why=missing),)


def standstill(facts: Facts) -> str:
    """Say what the stacks show where no mechanism was found; empty for a capture."""
    where = place(facts)
    kinds = {stack.wait for stack in stacks(facts)} - {WaitKind.NAMELESS} if where else set()
    if kinds == {WaitKind.RESTS}:
        return f"No thread that was shown is stuck ({where[:1].lower()}{where[1:]}); a parked request has no thread"
    return f"{where}; what holds it up cannot be told from this evidence" if where else ""


def _telling(known_stacks: tuple[NamedStack, ...]) -> NamedStack | None:
    """Return the main thread, or where that rests one that does not, or else whoever was pasted first."""
    main = next((stack for stack in known_stacks if stack.is_main), None)
    if main is not None and main.wait is not WaitKind.RESTS:
        return main
    quiet = {WaitKind.RESTS, WaitKind.NAMELESS, WaitKind.RUNS}
    needed = (stack for stack in known_stacks if stack.thread.role not in {Role.WORKER, Role.OTHER, Role.CALL_RCU})
    return next((stack for stack in needed if stack.wait not in quiet), main or next(iter(known_stacks), None))


def place(facts: Facts, end: Subject | None = None) -> str:
    """Say where the thread stands that all wait for, the main one, or whoever was pasted; empty for a capture.

    It is what can be told where no mechanism was found.
    """
    known_stacks = stacks(facts) if facts.origin is not Origin.CAPTURE else ()
    stack = next((stack for stack in known_stacks if subjects.thread(stack.thread) == end), None)
    stack = stack or _telling(known_stacks)
    if stack is None:
        return ""
    if stack.wait is WaitKind.POLL and stack.polls_for:
        polls = stack.polls_for[0]
        beyond = next((name for name in stack.names[stack.names.index(polls) + 1 :] if name not in {"", polls}), "")
        return f"{sentence(called(stack))} polls in {polls}{f', for {beyond}' if beyond else ''}"
    outside = [name for name in stack.outer if name][:2]
    where = ", under ".join(dict.fromkeys(filter(None, (next(filter(None, stack.names), ""), *outside))))
    return f"{sentence(called(stack))} {stack.wait.value}{f': {where}' if where else ''}"
