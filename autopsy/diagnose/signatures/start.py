"""QEMU has not come to the start of the VM: it waits for the first client of a socket."""

from __future__ import annotations

from autopsy.diagnose.queries.never_started import NEVER, awaited_client
from autopsy.diagnose.queries.threads import by_role, looks, slept_through
from autopsy.diagnose.queries.wording import missing
from autopsy.diagnose.signature import CannotTell, Judgement, Match, RuledOut, Signature, claim
from autopsy.facts import subjects
from autopsy.facts.cite import Unknown
from autopsy.facts.model.facts import Facts, Role


def _awaits(facts: Facts) -> Judgement:
    """QEMU opens its character devices before it makes the machine, and those with wait=on one after the other."""
    main = next(iter(by_role(facts, Role.MAIN)), None)
    if main is None or not looks(main):
        return CannotTell("the main thread (evidence/witness/tasks.txt)")
    for fact in (facts.polls, facts.descriptors, facts.sockets):
        if isinstance(fact, Unknown):
            return CannotTell(f"what the main thread polls: {missing(fact)}")
    listener = awaited_client(facts)
    if listener is None:
        return RuledOut("the main thread does not wait for a socket's first client", (looks(main)[0].cite,))
    address = listener.local or f"descriptor {listener.fd}"
    vcpus = by_role(facts, Role.VCPU)
    never = "" if vcpus else f"{NEVER}: "
    return Match(
        headline=f"{never}{'it' if never else 'QEMU'} waits for the first client of {address} (wait=on)",
        objects=(subjects.VirtualMachine(facts.vm.name), subjects.File(address)),
        confidence="proven" if slept_through(main) else "likely",
        claims=(
            claim(
                f"The main thread polls nothing but {address}, on which it listens, and what wakes itself.",
                looks(main)[0].cite,
                listener.cite,
            ),
            *(() if vcpus else (claim("It has no vCPU: the guest has never run.", looks(main)[0].cite),)),
        ),
        weight=1,
    )


SIGNATURES = (
    Signature("vm-awaits-client", "vm-state", "QEMU waits for a socket's first client before it starts", _awaits),
)
