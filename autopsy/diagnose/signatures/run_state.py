"""The VM does not run because it was told so, or because QEMU paused it after an error."""

from __future__ import annotations

from autopsy.bundle import layout
from autopsy.dataclass import dataclass
from autopsy.diagnose.diagnosis import Where
from autopsy.diagnose.queries.peers.programs import called
from autopsy.diagnose.queries.requests import title
from autopsy.diagnose.queries.socket_peers import about_sockets, peers_of, taken
from autopsy.diagnose.queries.wording import missing
from autopsy.diagnose.signature import CannotTell, Judgement, Match, RuledOut, Signature, claim
from autopsy.facts import subjects
from autopsy.facts.cite import Cite, Fact, Known, Unknown
from autopsy.facts.model.facts import DiskFact, Facts, SocketFact
from autopsy.facts.subjects import Subject

INCOMING = "inmigrate"


@dataclass(frozen=True, slots=True)
class Paused:
    """One family of run states, with the words that fit it."""

    id: str
    where: Where
    statuses: tuple[str, ...]
    words: str
    title: str

    def judge(self, facts: Facts) -> Judgement:
        """Judge by query-status, else by QEMU's own variable in the heap."""
        state = status(facts)
        if isinstance(state, Unknown):
            return CannotTell(f"the run state: {missing(state)}")
        if state.value not in self.statuses:
            return RuledOut(f"the run state is {state.value}", (state.cite,))
        again = facts.run_state_again
        if isinstance(again, Known) and again.value.running:
            words = f"the run state was {state.value}, and the VM ran at the second look"
            return RuledOut(words, (state.cite, again.cite))
        objects: list[Subject] = [subjects.VirtualMachine(facts.vm.name)]
        claims = [claim(f"The run state is {state.value}: {self.words}.", state.cite)]
        failed = _failed(facts) if "io-error" in self.statuses else ()
        objects[:0] = [subjects.disk(disk) for disk, _ in reversed(failed)]
        claims += [
            claim(f"Disk {title(disk)} {_of_disk(io_status.value)} (io-status {io_status.value}).", io_status.cite)
            for disk, io_status in failed
        ]
        sender = _stopped_sender(facts) if INCOMING in self.statuses else ()
        alive = facts.monitor.alive
        if isinstance(again, Known) and again.value.status == state.value:
            claims.append(claim("It was the same at the second snapshot.", again.cite))
        return Match(
            headline=f"{_headline(failed) or self.words[0].upper() + self.words[1:]} (run state {state.value})"
            f"{_about(sender)}",
            objects=(*objects, *peers_of(sender)),
            confidence="proven",
            claims=(*claims, *about_sockets(sender)),
            # Whatever pauses a VM comes round: where the main loop does not, a `stop` has not ended, or a save has not.
            effect=isinstance(alive, Known) and not alive.value,
        )


def _failed(facts: Facts) -> tuple[tuple[DiskFact, Known[str]], ...]:
    """Return the disks that say of themselves that a request failed, with what they say."""
    disks = facts.disks.value if isinstance(facts.disks, Known) else ()
    statuses = ((disk, disk.io_status) for disk in disks if isinstance(disk.io_status, Known))
    return tuple((disk, status) for disk, status in statuses if status.value not in {"", "ok"})


def _headline(failed: tuple[tuple[DiskFact, Known[str]], ...]) -> str:
    """Name the disk, if one does, and what befell it."""
    if not failed:
        return ""
    disk, io_status = failed[0]
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    return f"Disk {title(disk)} {_of_disk(io_status.value)}{more}: QEMU paused the VM"


def _of_disk(io_status: str) -> str:
    return "is out of space" if io_status == "nospace" else "failed a request"


def _stopped_sender(facts: Facts) -> tuple[SocketFact, ...]:
    """Return the connection to whoever sends the VM, if it is a program of this host that is stopped."""
    return tuple(socket for socket in taken(facts) if any(peer.state in {"T", "t"} for peer in socket.peers))[:1]


def _about(sender: tuple[SocketFact, ...]) -> str:
    who = ", ".join(called(peer) for socket in sender for peer in socket.peers)
    return f": the other end of its connection, {who}, is stopped" if who else ""


def status(facts: Facts) -> Fact[str]:
    """Return the run state's name by the best source."""
    if isinstance(facts.run_state, Known):
        return Known(facts.run_state.value.status, facts.run_state.cite)
    if isinstance(facts.heap, Known) and facts.heap.value.run_state:
        return Known(facts.heap.value.run_state, Cite(layout.evidence(layout.GDB_THREADS, layout.HEAP), 0, "run_state"))
    if isinstance(facts.run_state_again, Known):
        return Known(facts.run_state_again.value.status, facts.run_state_again.cite)
    return facts.run_state


FAMILIES = (
    Paused(
        "vm-paused",
        "vm-state",
        ("paused",),
        "the VM is paused on purpose",
        "the VM is paused by its operator or its manager",
    ),
    Paused(
        "vm-prelaunch",
        "vm-state",
        ("prelaunch", "preconfig"),
        "the VM was never started: QEMU waits for `cont`",
        "QEMU waits for its first `cont`",
    ),
    Paused(
        "vm-io-error",
        "vm-state",
        ("io-error",),
        "QEMU paused the VM because a disk request failed",
        "QEMU paused the VM after an I/O error",
    ),
    Paused(
        "vm-internal-error",
        "vm-state",
        ("internal-error",),
        "KVM could not go on with the VM",
        "KVM gave up on an instruction or a state",
    ),
    Paused(
        "vm-watchdog",
        "vm-state",
        ("watchdog",),
        "the guest's watchdog fired, and QEMU is set to pause",
        "the guest's watchdog fired",
    ),
    Paused(
        "guest-panicked",
        "guest",
        ("guest-panicked",),
        "the guest's kernel panicked and said so through pvpanic",
        "the guest's kernel panicked",
    ),
    Paused(
        "vm-shutdown",
        "vm-state",
        ("shutdown",),
        "the guest has shut down; QEMU stays because of -no-shutdown",
        "the guest shut itself down",
    ),
    Paused(
        "vm-suspended",
        "vm-state",
        ("suspended",),
        "the guest sleeps (ACPI S3)",
        "the guest is in suspend to RAM",
    ),
    Paused(
        "vm-inmigrate",
        "migration",
        (INCOMING,),
        "the VM waits for an incoming migration",
        "the VM waits for an incoming migration",
    ),
    Paused(
        "vm-migrated",
        "migration",
        ("postmigrate", "colo"),
        "the VM has handed over to its migration's destination",
        "the VM was paused by its migration",
    ),
    Paused(
        "vm-saving",
        "migration",
        ("save-vm", "restore-vm"),
        "the VM is paused while its state is saved or loaded",
        "the VM's state is being saved or loaded",
    ),
    Paused(
        "vm-debug",
        "vm-state",
        ("debug",),
        "the VM stopped for a debugger at the gdb stub",
        "a debugger at QEMU's gdb stub stopped the guest",
    ),
)

SWITCHING = "finish-migrate"
WAITS_FOR_MANAGER = "pre-switchover"
# Since one of these the VM runs elsewhere, on memory that is partly here: qapi/migration.json, MigrationStatus.
POSTCOPY = frozenset(
    {"postcopy-device", "postcopy-active", "postcopy-paused", "postcopy-recover-setup", "postcopy-recover"}
)
CUT_OFF = frozenset({"postcopy-paused", "postcopy-recover-setup", "postcopy-recover"})


def _switching_over(facts: Facts) -> Judgement:
    """The migration's source is paused for its last part: nothing was handed over yet, and here is the only copy."""
    state = status(facts)
    if isinstance(state, Unknown):
        return CannotTell(f"the run state: {missing(state)}")
    if state.value != SWITCHING:
        return RuledOut(f"the run state is {state.value}", (state.cite,))
    migration = facts.migration
    if isinstance(migration, Known) and migration.value in POSTCOPY:
        return RuledOut(
            f"the VM runs at the destination already: the migration is {migration.value}", (migration.cite,)
        )
    held = isinstance(migration, Known) and migration.value == WAITS_FOR_MANAGER
    words = (
        "The migration waits for its manager's word (migrate-continue) before it hands over"
        if held
        else "The VM is paused while its migration sends the last of it"
    )
    place = (
        f"the VM is still here, and nowhere else (migration {migration.value})"
        if isinstance(migration, Known)
        else "whether it runs at the destination by now nobody could be asked"
    )
    alive = facts.monitor.alive
    return Match(
        headline=f"{words}: {place}",
        objects=(subjects.VirtualMachine(facts.vm.name), subjects.Migration()),
        confidence="proven" if held else "likely",
        claims=(
            claim(f"The run state is {state.value}.", state.cite),
            *(
                (claim(f"The migration's status is {migration.value}.", migration.cite),)
                if isinstance(migration, Known)
                else ()
            ),
        ),
        effect=isinstance(alive, Known) and not alive.value,
    )


def _in_postcopy(facts: Facts) -> Judgement:
    """The VM runs at the destination, which lacks memory that only this process has: nobody has the whole VM."""
    state = status(facts)
    if isinstance(state, Unknown):
        return CannotTell(f"the run state: {missing(state)}")
    if state.value != SWITCHING:
        return RuledOut(f"the run state is {state.value}", (state.cite,))
    migration = facts.migration
    if isinstance(migration, Unknown):
        return CannotTell(f"the migration: {missing(migration)}")
    if migration.value not in POSTCOPY:
        return RuledOut(f"the migration's status is {migration.value}", (migration.cite,))
    words = (
        "the connection is lost, and the VM stands at the first page that it lacks"
        if migration.value in CUT_OFF
        else "what it lacks of its memory is sent"
    )
    alive = facts.monitor.alive
    return Match(
        headline=f"The VM runs at its migration's destination, and a part of its memory is here alone: {words} "
        f"(migration {migration.value})",
        objects=(subjects.VirtualMachine(facts.vm.name), subjects.Migration()),
        confidence="proven",
        claims=(
            claim(f"The run state is {state.value}.", state.cite),
            claim(f"The migration's status is {migration.value}: the destination runs the VM.", migration.cite),
        ),
        effect=isinstance(alive, Known) and not alive.value,
    )


SIGNATURES = (
    Signature("vm-in-postcopy", "migration", "the VM has moved, and its memory has not yet", _in_postcopy),
    *(Signature(family.id, family.where, family.title, family.judge) for family in FAMILIES),
    Signature("vm-switching-over", "migration", "the VM is paused for the end of its migration", _switching_over),
)
