"""What /proc tells of the programs that the VM asks: whether they stand still, or ask another that does."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import pairwise

from autopsy.dataclass import dataclass
from autopsy.diagnose.diagnosis import Claim
from autopsy.diagnose.queries import naming
from autopsy.diagnose.queries.kernel_stacks import Family, family_of
from autopsy.diagnose.queries.wording import sentence
from autopsy.diagnose.signature import claim
from autopsy.facts import subjects
from autopsy.facts.model.facts import PeerFact, PeerThread

FREEZER = frozenset({"do_freezer_trap", "__refrigerator", "refrigerator"})
STOPPED = frozenset("Tt")


@dataclass(frozen=True, slots=True)
class PeerAsleep:
    """One thread of a peer in State D at the only look at it, and the kind of its wait where a name tells that."""

    peer: PeerFact
    thread: PeerThread
    family: Family | None

    @property
    def for_good(self) -> bool:
        """Return whether it is known not to end by itself: no healthy program is met there in passing."""
        return self.family is not None and not self.family.passes


def asleep(programs: Iterable[PeerFact]) -> Iterator[PeerAsleep]:
    """Yield the threads of programs that sleep where no signal reaches them."""
    for peer in {peer.pid: peer for peer in programs}.values():
        for thread in peer.threads:
            if thread.state == "D" and not is_frozen(peer):
                kind = family_of(thread.state, thread.call, thread.kernel_stack, thread.wchan)
                yield PeerAsleep(peer, thread, kind)


def is_frozen(peer: PeerFact) -> bool:
    """Tell whether the freezer of a control group holds the program."""
    return bool(FREEZER & {peer.wchan, *peer.kernel_stack})


def cannot_move(peer: PeerFact) -> bool:
    """Tell whether a program is stopped, or held by the freezer."""
    return peer.state in STOPPED or is_frozen(peer)


def stands_still(peer: PeerFact) -> bool:
    """Tell whether a program cannot move, or has a thread that sleeps in the kernel for good."""
    return cannot_move(peer) or any(sleeper.for_good for sleeper in asleep((peer,)))


def why_still(peer: PeerFact) -> str:
    """Say of a program that stands still what holds it, after its name."""
    if is_frozen(peer):
        return "is in a frozen control group"
    held = next((sleeper for sleeper in asleep((peer,)) if sleeper.for_good and sleeper.family), None)
    return f"waits for {held.family.words}" if held and held.family else "is stopped"


def to_still(peer: PeerFact) -> tuple[PeerFact, ...]:
    """Return the way from a program to one that it asks, or that is asked in turn, and that stands still."""
    for server in peer.servers:
        if stands_still(server):
            return (peer, server)
        if chain := to_still(server):
            return (peer, *chain)
    return ()


def on_to_still(peer: PeerFact) -> tuple[PeerFact, ...]:
    """Return the way from a program that goes on: one that stands still is the end of the way itself."""
    return () if stands_still(peer) else to_still(peer)


def asked_in_turn(peers: Iterable[PeerFact]) -> tuple[PeerFact, ...]:
    """Return the programs that stand still, and that others which do not are found to ask; each once."""
    chains = filter(None, map(on_to_still, peers))
    return tuple({chain[-1].pid: chain[-1] for chain in chains}.values())


def why_silent(peers: Collection[PeerFact]) -> str:
    """Say why one of these programs does not answer, empty where nothing tells."""
    if cannot := next((peer for peer in peers if cannot_move(peer)), None):
        return f"its process {cannot.pid} ({cannot.comm}) {why_still(cannot)}"
    if held := next((sleeper for sleeper in asleep(peers) if sleeper.for_good and sleeper.family), None):
        words = held.family.words if held.family else ""
        return f"a thread of its process {held.peer.pid} ({held.peer.comm}) waits for {words}"
    if stuck := next((peer for peer in peers if peer.state == "D"), None):
        return (
            f"its process {stuck.pid} ({stuck.comm}) sleeps in the kernel (State D, {stuck.wchan or 'wchan unknown'})"
        )
    if chain := next((chain for peer in peers if (chain := to_still(peer))), ()):
        asked = ", that of ".join(map(called, chain[1:]))
        asks = f"its process {chain[0].pid} ({chain[0].comm}) is itself a client of {asked}"
        return f"{asks}, which {why_still(chain[-1])}"
    return ""


def about_chain(peer: PeerFact) -> Iterator[Claim]:
    """Say of a program that goes on by which way it asks one that stands still."""
    for asks, asked in pairwise(on_to_still(peer)):
        words = f"{sentence(called(asks))} has made a connection to {called(asked)}, State {asked.state or 'unknown'}"
        yield claim(f"{words}: whether it waits for that one was not seen.", asks.cite, asked.cite)


def called(peer: PeerFact) -> str:
    """Return a program as people speak of it."""
    return naming.name(subjects.peer(peer))


def about_thread(sleeper: PeerAsleep) -> Claim:
    """Say of a peer's thread where it sleeps in the kernel."""
    what = f": it waits for {sleeper.family.words}" if sleeper.family else ""
    return claim(
        f"Thread {sleeper.thread.tid} of {called(sleeper.peer)} was in State D, "
        f"in {sleeper.thread.call or 'the kernel'}, under {sleeper.thread.wchan or 'a place that is not known'}{what}.",
        sleeper.thread.cite,
    )
