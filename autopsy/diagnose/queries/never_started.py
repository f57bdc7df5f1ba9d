"""Whether QEMU has come to the start of its VM: until then its main thread is inside of qemu_init()."""

from __future__ import annotations

from autopsy.diagnose.diagnosis import Claim
from autopsy.diagnose.queries.threads import by_role, descriptor, functions
from autopsy.diagnose.signature import claim
from autopsy.facts.cite import Known, Unknown
from autopsy.facts.model.facts import Facts, Role, SocketFact

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


def awaited_client(facts: Facts) -> SocketFact | None:
    """Return the socket on which QEMU waits for its first client, None where the main thread does something else.

    Its loop always polls more: the descriptor of its signals, and what its block layer is woken by.
    """
    if isinstance(facts.polls, Unknown) or isinstance(facts.sockets, Unknown):
        return None
    polled = next((poll.fds for poll in facts.polls.value if poll.tid == facts.vm.pid), ())
    listening = {socket.fd: socket for socket in facts.sockets.value if socket.state == "LISTEN"}
    others = [descriptor(facts, fd.fd) for fd in polled if fd.fd not in listening]
    if len(others) > 1 or any(other is None or other.kind != "eventfd" for other in others):
        return None
    return next((listening[fd.fd] for fd in polled if fd.fd in listening), None)
