"""What the threads of a program at the other end wait for: it may listen, and be unable to answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from autopsy.diagnose.queries.kernel_stacks import Family, family_of
from autopsy.facts.model.facts import PeerFact, PeerThread, SocketFact

FREEZER = frozenset({"do_freezer_trap", "__refrigerator", "refrigerator"})
STOPPED = frozenset("Tt")


@dataclass(frozen=True, slots=True)
class Asleep:
    """One thread of a peer in State D at the only look at it, and the kind of its wait where a name tells that."""

    peer: PeerFact
    thread: PeerThread
    family: Family | None

    @property
    def for_good(self) -> bool:
        """Return whether it is known not to end by itself: no healthy program is met there in passing."""
        return self.family is not None and not self.family.passes


def asleep(sockets: Iterable[SocketFact]) -> Iterator[Asleep]:
    """Yield the threads of the programs at the other ends that sleep where no signal reaches them."""
    for peer in {peer.pid: peer for socket in sockets for peer in socket.peers}.values():
        for thread in peer.threads:
            if thread.state == "D" and not is_frozen(peer):
                kind = family_of(thread.state, thread.call, thread.kernel_stack, thread.wchan)
                yield Asleep(peer, thread, kind)


def is_frozen(peer: PeerFact) -> bool:
    """Tell whether the freezer of a control group holds the program."""
    return bool(FREEZER & {peer.wchan, *peer.kernel_stack})


def cannot_move(peer: PeerFact) -> bool:
    """Tell whether a program is stopped, or held by the freezer."""
    return peer.state in STOPPED or is_frozen(peer)
