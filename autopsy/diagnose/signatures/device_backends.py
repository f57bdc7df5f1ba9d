"""Programs that serve one of the VM's devices, and stand still: vhost-user back ends, the software TPM."""

from __future__ import annotations

from autopsy.bundle.syscalls import PEER_CALLS
from autopsy.dataclass import dataclass
from autopsy.diagnose.queries.account import PAST_QEMU
from autopsy.diagnose.queries.peers.programs import stands_still
from autopsy.diagnose.queries.requests import confidence
from autopsy.diagnose.queries.socket_peers import about_sockets, peers_of, socket_of, state
from autopsy.diagnose.queries.threads import functions, in_calls, looks, named, slept_through, threads
from autopsy.diagnose.queries.wording import sentence
from autopsy.diagnose.signature import CannotTell, Judgement, Match, RuledOut, Signature, claim
from autopsy.facts import subjects
from autopsy.facts.cite import Cite, Known, Unknown
from autopsy.facts.model.facts import Facts, Helper, PeerFact, ThreadFact


@dataclass(frozen=True, slots=True)
class Talk:
    """One kind of helper program; QEMU puts questions to it holding the BQL, and a device's work may go past QEMU.

    `carries_disks` says that requests of the guest wait for it, of which QEMU itself holds none.
    """

    id: str
    kind: str
    title: str
    words: str
    frames: tuple[str, ...]
    carries_disks: bool

    def judge(self, facts: Facts) -> Judgement:
        """Judge by a thread that waits for the helper on its socket, else by what state the helper is in."""
        if isinstance(facts.threads, Unknown):
            return CannotTell("the threads (evidence/witness/tasks.txt)")
        helpers = [helper for helper in facts.helpers if helper.kind == self.kind]
        talking = [thread for thread in in_calls(facts, PEER_CALLS) if self.talks(facts, thread, helpers)]
        silent = [thread for thread in talking if slept_through(thread) is not False]
        if silent:
            return self._match(facts, silent, helpers)
        if gone := [helper for helper in helpers if _gone(helper)]:
            return self._left(gone[0])
        if stopped := [helper for helper in helpers if _stands(helper)]:
            return self._stopped(stopped[0])
        if talking:
            return RuledOut(f"the conversation with {self.words} goes on", (facts.threads.cite,))
        return self._not_seen(facts, facts.threads.cite, helpers)

    def _not_seen(self, facts: Facts, seen: Cite, helpers: list[Helper]) -> Judgement:
        if self.carries_disks and (unseen := [helper for helper in helpers if not _peers(helper)]):
            return CannotTell(f"what {self.words} of {unseen[0].device} does: the program behind {unseen[0].address}")
        if helpers:
            cites = tuple(peer.cite for helper in helpers for peer in _peers(helper))
            return RuledOut(f"no thread waits for {self.words}, and none is stopped", cites[:3] or (helpers[0].cite,))
        if all(isinstance(thread.frames, Unknown) for thread in threads(facts)) and isinstance(
            facts.vm.arguments, Unknown
        ):
            return CannotTell("the threads' frames (evidence/gdb.threads/threads.json)")
        return RuledOut(f"no thread is in a conversation with {self.words}", (seen,))

    def talks(self, facts: Facts, thread: ThreadFact, helpers: list[Helper]) -> bool:
        """Tell whether a thread is in a call on the helper's socket, or under the helper's functions in any."""
        if not any(look.syscall.name in PEER_CALLS for look in looks(thread)[:1]):
            return False
        inodes = {socket.inode for helper in helpers for socket in helper.sockets}
        return bool(self._frames_of(thread)) or any(socket.inode in inodes for socket in socket_of(facts, thread))

    def _match(self, facts: Facts, silent: list[ThreadFact], helpers: list[Helper]) -> Match:
        proven = any(slept_through(thread) for thread in silent)
        sockets = tuple(socket for thread in silent for socket in socket_of(facts, thread))
        inodes = {socket.inode for socket in sockets}
        devices = [
            subjects.Device(helper.device) for helper in helpers if inodes & {socket.inode for socket in helper.sockets}
        ]
        claims = [
            claim(
                f"{sentence(named(thread))} waits in {looks(thread)[0].syscall.name}{self._under(thread)}.",
                looks(thread)[0].cite,
                *((thread.frames.cite,) if isinstance(thread.frames, Known) else ()),
            )
            for thread in silent[:3]
        ]
        return Match(
            headline=f"{sentence(named(silent[0]))} waits for {self.words}{state(sockets)}",
            objects=(*devices, *peers_of(sockets), *(subjects.thread(thread) for thread in silent[:3])),
            confidence=confidence(proven=proven),
            claims=(*claims, *about_sockets(sockets)),
            weight=len(silent),
        )

    def _stopped(self, helper: Helper) -> Match:
        """Say of a helper that stands still that its device does too, whether or not a thread of QEMU noticed."""
        words = (
            f"The {self.words.split(maxsplit=1)[1]} of {helper.device} does not do its work{state(helper.sockets)}; "
            "the guest's requests wait there, and QEMU holds none of them"
            if self.carries_disks
            else f"{sentence(self.words)} does not do its work{state(helper.sockets)}; QEMU waits for nothing of it yet"
        )
        return Match(
            headline=words,
            objects=(subjects.Device(helper.device), *peers_of(helper.sockets)),
            confidence="likely" if self.carries_disks else "possible",
            claims=(
                claim(f"{helper.model} {helper.device} is served through {helper.address}.", helper.cite),
                *about_sockets(helper.sockets),
            ),
            beside=not self.carries_disks,
            weight=1,
        )

    def _left(self, helper: Helper) -> Match:
        """Say of a helper that is not connected that whatever the guest asks of its device is answered by nobody."""
        serves_disks = helper.model.startswith(PAST_QEMU)
        cite = helper.connected.cite if isinstance(helper.connected, Known) else helper.cite
        return Match(
            headline=f"{sentence(self.words)} of {helper.device} is gone: nobody is at the other end of "
            f"{helper.address}" + (", and the guest's requests are answered by nobody" if serves_disks else ""),
            objects=(subjects.Device(helper.device), subjects.Server(helper.address)),
            confidence="proven",
            claims=(
                claim(f"{helper.model} {helper.device} is served through {helper.address}.", helper.cite),
                claim("QEMU says that this chardev is disconnected.", cite),
            ),
            beside=not serves_disks,
            weight=1,
        )

    def _frames_of(self, thread: ThreadFact) -> list[str]:
        return [name for name in functions(thread) if name.startswith(self.frames)]

    def _under(self, thread: ThreadFact) -> str:
        names = self._frames_of(thread)
        return f" under {names[0]}" if names else ""


def _peers(helper: Helper) -> tuple[PeerFact, ...]:
    return tuple(peer for socket in helper.sockets for peer in socket.peers)


def _gone(helper: Helper) -> bool:
    """Tell whether nobody serves the device: QEMU says so, and no socket leads there."""
    return isinstance(helper.connected, Known) and not helper.connected.value and not helper.sockets


def _stands(helper: Helper) -> bool:
    """Tell whether a helper is known not to move: it is stopped, or a thread of it waits for what does not end."""
    return any(map(stands_still, _peers(helper)))


TALKS = (
    Talk(
        "vhost-user-silent",
        "vhost-user",
        "a vhost-user back end does not answer",
        "a vhost-user back end",
        ("vhost_", "process_message_reply"),
        carries_disks=True,
    ),
    Talk(
        "swtpm-silent",
        "swtpm",
        "the software TPM does not answer",
        "the software TPM",
        ("tpm_emulator_", "tpm_util_"),
        carries_disks=False,
    ),
)


def of_a_helper(facts: Facts, thread: ThreadFact) -> bool:
    """Tell whether a thread talks to a program that serves a device."""
    return any(
        talk.talks(facts, thread, [helper for helper in facts.helpers if helper.kind == talk.kind]) for talk in TALKS
    )


SIGNATURES = tuple(Signature(talk.id, "peer", talk.title, talk.judge) for talk in TALKS)
