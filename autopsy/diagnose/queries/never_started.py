"""Whether QEMU has come to the start of its VM: until then its main thread is inside of qemu_init()."""

from __future__ import annotations

from autopsy.diagnose.diagnosis import Claim
from autopsy.diagnose.queries.threads import by_role, functions
from autopsy.diagnose.signature import claim
from autopsy.facts.cite import Known
from autopsy.facts.model.facts import Facts, Role

NEVER = "This QEMU has never started"
# Since QEMU 5.0 (softmmu/vl.c) qemu_init() ends before the loop begins; before that, no function has the name.
INIT = "qemu_init"
LOOP = "main_loop_wait"  # --preconfig runs it inside of qemu_init()


def still_starting(facts: Facts) -> Claim | None:
    """Return what shows that the guest has never run, if anything does."""
    for main in by_role(facts, Role.MAIN):
        frames = functions(main)
        if isinstance(main.frames, Known) and INIT in frames and LOOP not in frames:
            return claim(f"Its main thread is still inside of {INIT}(): the guest has never run.", main.frames.cite)
    return None


def said_first(headline: str) -> str:
    """Return the headline of a QEMU that has never started, which says so first."""
    if headline.startswith(NEVER):
        return headline
    acronym = headline[:2].isupper()
    return f"{NEVER}: {headline if acronym else headline[:1].lower() + headline[1:]}"
