"""The block layer: drains, overlapping requests, the graph lock, qcow2's locks, flushes, blkdebug."""

from __future__ import annotations

from autopsy.dataclass import dataclass
from autopsy.diagnose.diagnosis import Claim, Confidence
from autopsy.diagnose.queries import naming
from autopsy.diagnose.queries.coroutine_mutexes import held
from autopsy.diagnose.queries.never_started import awaited_client
from autopsy.diagnose.queries.requests import (
    Standing,
    all_counted,
    confidence,
    counted,
    disks_of,
    last_driver,
    of_disks,
    stand,
    standing,
    still,
    their_disks,
)
from autopsy.diagnose.queries.threads import by_role, functions, named, polls_with_bql
from autopsy.diagnose.queries.wording import missing
from autopsy.diagnose.signature import CannotTell, Judgement, Match, RuledOut, Signature, claim
from autopsy.facts import subjects
from autopsy.facts.cite import Cite, Known, Unknown
from autopsy.facts.model.facts import CoroutineFact, DiskFact, Facts, Park, Role
from autopsy.facts.model.yield_points import BEHIND, DISK_PARKS

LEAVES = (DISK_PARKS - BEHIND) | {Park.PVE_BACKUP, Park.SLEEP, Park.OTHER}


@dataclass(frozen=True, slots=True)
class Behind:
    """A place where a request waits for another request of QEMU's own; `leaf` says what a missing leaf would mean."""

    id: str
    title: str
    words: str
    parks: frozenset[Park]
    leaf: str

    def judge(self, facts: Facts) -> Judgement:
        """Judge by who waits there; it is the cause only if no other request stands that could hold it."""
        waiting = standing(facts, self.parks)
        if isinstance(waiting, Unknown):
            return CannotTell(f"the parked coroutines: {missing(waiting)}")
        if not waiting.requests:
            cites = (facts.coroutines.cite,) if isinstance(facts.coroutines, Known) else ()
            return RuledOut(
                f"no request stands {self.words}", tuple(request.cite for request in waiting.moving[:3]) or cites
            )
        mutexes = held(facts, waiting)
        endless = mutexes.orphaned or mutexes.knotted
        leaves = () if endless else still(facts, *LEAVES)
        disks = their_disks(facts, waiting.requests)
        number = waiting.counted()
        claims = [claim(f"{number} {of_disks(disks)} stand {self.words}.", *waiting.cites)]
        claims += (*_whom(facts, waiting), *mutexes.claims)
        if not (leaves or mutexes.claims):
            claims.append(claim(self.leaf, *waiting.cites[:2]))
        return Match(
            headline=f"{number} {of_disks(disks)} {'stands' if len(waiting.requests) == 1 else 'stand'} {self.words}",
            objects=disks,
            confidence=confidence(
                proven=waiting.proven and bool(leaves or endless), otherwise="likely" if waiting.proven else "possible"
            ),
            claims=tuple(claims),
            stands=stand(self.parks, waiting.requests, mutexes.ended),
            weight=len(waiting.requests),
        )


def _whom(facts: Facts, waiting: Standing) -> list[Claim]:
    """Say which request a waiting one waits for, where the heap tells it."""
    if isinstance(facts.heap, Unknown):
        return []
    requests = {request.address: (node, request) for node in facts.heap.value.nodes for request in node.requests}
    ours = {request.address for request in waiting.requests}
    claims = []
    for node, request in requests.values():
        if request.coroutine in ours and request.waiting_for in requests:
            _, holder = requests[request.waiting_for]
            claims.append(
                claim(
                    f"The {request.type} of {request.bytes} bytes at {request.offset} of node {node.node_name} waits "
                    "for the "
                    f"{holder.type} of {holder.bytes} bytes at {holder.offset}.",
                    facts.heap.cite,
                )
            )
    return claims[:4]


BEHINDS = (
    Behind(
        "serialising-wait",
        "requests wait for an overlapping one",
        "behind a request that overlaps them",
        frozenset({Park.SERIALISING}),
        (
            "No other request of the disk stands elsewhere: the one they wait for has lost its wake-up, or they wait "
            "in "
            "a ring."
        ),
    ),
    Behind(
        "flush-queue-wait",
        "flushes wait for another flush",
        "behind another flush",
        frozenset({Park.FLUSH_QUEUE}),
        "No flush stands in an AIO engine: the active one has lost its wake-up.",
    ),
    Behind(
        "qcow2-lock-wait",
        "requests wait inside qcow2",
        "behind a lock or an allocation of their qcow2 image",
        frozenset({Park.QCOW2_LOCK, Park.QCOW2_DEPENDENCY, Park.QCOW2_THREADS}),
        "No request of the image stands in an AIO engine: the lock's holder is not among the parked requests.",
    ),
    Behind(
        "co-mutex-wait",
        "requests wait for a coroutine mutex",
        "behind a coroutine mutex",
        frozenset({Park.CO_MUTEX, Park.TASK_POOL}),
        "Its holder is not among the parked requests: the mutex may be orphaned.",
    ),
)


def _blkdebug(facts: Facts) -> Judgement:
    waiting = standing(facts, (Park.BLKDEBUG,))
    if isinstance(waiting, Unknown):
        return CannotTell(f"the parked coroutines: {missing(waiting)}")
    # A suspended request waits for an operator's word: others of its disk may well go on.
    requests = waiting.requests or tuple(
        request for request in waiting.moving if isinstance(request.stuck, Known) and request.stuck.value
    )
    if not requests:
        cites = (facts.coroutines.cite,) if isinstance(facts.coroutines, Known) else ()
        return RuledOut("no request is suspended by blkdebug", cites)
    disks = their_disks(facts, requests)
    return Match(
        headline=(
            f"{counted(facts, requests)} {of_disks(disks)} {'is' if len(requests) == 1 else 'are'} "
            "suspended by blkdebug"
        ),
        objects=disks,
        confidence=confidence(proven=all_counted(facts)),
        claims=(
            claim(
                "They are parked in blkdebug's suspend_request: only `qemu-io … resume` sets them free.",
                *(request.cite for request in requests[:6]),
            ),
        ),
        stands=stand((Park.BLKDEBUG,), requests, _nodes_of(facts, requests)),
        weight=len(requests),
    )


def _nodes_of(facts: Facts, requests: tuple[CoroutineFact, ...]) -> tuple[subjects.Driver, ...]:
    nodes = {node.name: node for request in requests for disk in disks_of(facts, request) for node in disk.nodes}
    return tuple(subjects.Driver(node.name, node.driver) for node in nodes.values() if node.driver == "blkdebug")


def _nested_poll(facts: Facts) -> Judgement:
    if isinstance(facts.main_loop, Unknown):
        return CannotTell(f"what the main thread does: {missing(facts.main_loop)}")
    loop = facts.main_loop.value
    holder = next(
        (
            thread
            for thread in by_role(facts, Role.VCPU, Role.IOTHREAD, Role.MIGRATION)
            if polls_with_bql(facts, thread)
        ),
        None,
    )
    if loop.state != "nested poll" and holder is None:
        if loop.state == "unknown":
            return CannotTell(f"what the main thread does: {loop.why}")
        return RuledOut(f"the main loop does not poll inside another call: it is {loop.state}", (loop.cite,))
    alive = facts.monitor.alive
    if isinstance(alive, Known) and alive.value:
        # It was looked at before it was asked, and answers nothing before such a poll ends.
        return RuledOut("QEMU's main loop came round from it, and answered its monitor", (loop.cite, alive.cite))
    if holder is None and (listener := awaited_client(facts)) is not None:
        return RuledOut("the main thread waits for a socket's first client", (loop.cite, listener.cite))
    who = "the main thread" if holder is None else named(holder)
    under = loop.under if holder is None else _under(functions(holder))
    command = f" for {loop.command}" if loop.command not in {"", under} and holder is None else ""
    tid = loop.tid if holder is None else holder.tid
    return Match(
        headline=f"The main loop is dead: {who} waits inside {under or 'a drain or a synchronous request'}{command}",
        objects=(subjects.Thread(tid, role=Role.MAIN) if holder is None else subjects.thread(holder),),
        confidence="proven",
        claims=(
            claim(
                (f"{who[0].upper()}{who[1:]} polls for events of the block layer while it holds the BQL."), loop.cite
            ),
        ),
        effect=True,
        weight=1,
    )


def _under(names: tuple[str, ...]) -> str:
    inside = [
        name for name in names if name.startswith(("bdrv_", "blk_", "virtio_", "scsi_", "ide_", "qmp_", "do_vm_stop"))
    ]
    return inside[0] if inside else ""


def _quiesce_leak(facts: Facts) -> Judgement:
    waiting = standing(facts, (Park.DRAINED,))
    if isinstance(waiting, Unknown):
        return CannotTell(f"the parked coroutines: {missing(waiting)}")
    if not waiting.requests:
        cites = (facts.coroutines.cite,) if isinstance(facts.coroutines, Known) else ()
        return RuledOut("no request is queued because of a drain", cites)
    if isinstance(facts.main_loop, Unknown):
        return CannotTell(f"whether a drain is under way: {missing(facts.main_loop)}")
    if facts.main_loop.value.state == "unknown":
        return CannotTell(f"whether a drain is under way: {facts.main_loop.value.why}")
    draining = facts.main_loop.value.state == "nested poll"
    disks = their_disks(facts, waiting.requests)
    quiesced = [disk for disk in _disks(facts, disks) if isinstance(disk.quiesced, Known) and disk.quiesced.value > 0]
    words = "a drain that is under way" if draining else "a drain that ended without letting them go"
    return Match(
        headline=f"{waiting.counted()} {of_disks(disks)} are queued behind {words}",
        objects=disks,
        confidence="proven" if quiesced and waiting.proven else confidence(proven=False),
        claims=(
            claim(f"{waiting.counted()} are parked in blk_wait_while_drained.", *waiting.cites),
            claim(f"The main loop is {facts.main_loop.value.state}.", facts.main_loop.value.cite),
            *(
                claim(f"Disk {disk.name} is quiesced {disk.quiesced.value} times.", disk.quiesced.cite)
                for disk in quiesced
                if isinstance(disk.quiesced, Known)
            ),
        ),
        stands=stand((Park.DRAINED,), waiting.requests),
        effect=draining,
        weight=len(waiting.requests),
    )


def _disks(facts: Facts, wanted: tuple[subjects.Volume, ...]) -> list[DiskFact]:
    whole = facts.disks.value if isinstance(facts.disks, Known) else ()
    return [disk for disk in whole if subjects.disk(disk) in wanted]


def _graph_lock(facts: Facts) -> Judgement:
    waiting = standing(facts, (Park.GRAPH_LOCK,))
    if isinstance(waiting, Unknown):
        return CannotTell(f"the parked coroutines: {missing(waiting)}")
    if isinstance(facts.main_loop, Unknown):
        return CannotTell(f"what the main thread does: {missing(facts.main_loop)}")
    loop = facts.main_loop.value
    writer = (
        isinstance(facts.heap, Known)
        and facts.heap.value.graph_lock is not None
        and facts.heap.value.graph_lock.has_writer
    )
    missed = (
        loop.state == "nested poll"
        and "wrlock" in loop.under
        and not waiting.requests
        and not still(facts, *DISK_PARKS)
    )
    if missed and isinstance(facts.coroutines, Known):
        return _graph_match(
            facts, waiting, "the block graph's writer waits for readers that have gone", "likely", loop.cite
        )
    if not waiting.requests:
        return RuledOut("no request waits for the block graph's lock", (loop.cite,))
    leaves = still(facts, *LEAVES)
    if loop.state == "nested poll" and not leaves:
        words = "the block graph's writer drains requests that wait for the graph's lock"
        return _graph_match(facts, waiting, words, "proven" if writer and waiting.proven else "likely", loop.cite)
    return Match(
        headline=f"{waiting.counted()} wait for the block graph's lock",
        objects=their_disks(facts, waiting.requests),
        confidence=confidence(proven=waiting.proven),
        claims=(claim("They are parked in bdrv_graph_co_rdlock.", *waiting.cites),),
        stands=stand((Park.GRAPH_LOCK,), waiting.requests),
        effect=True,
        weight=len(waiting.requests),
    )


def _graph_match(facts: Facts, waiting: Standing, words: str, sure: Confidence, cite: Cite) -> Match:
    return Match(
        headline=f"{words[0].upper()}{words[1:]}",
        objects=their_disks(facts, waiting.requests),
        confidence=sure,
        claims=(claim(f"The main thread: {words}.", cite, *waiting.cites),),
        stands=stand((Park.GRAPH_LOCK,), waiting.requests, (subjects.Thread(facts.vm.pid),)),
        weight=len(waiting.requests) + 1,
    )


def _driver(facts: Facts) -> Judgement:
    """Requests that stand inside a driver: the cause where the disk's drivers are known, and wait for nobody else."""
    waiting = standing(facts, (Park.DRIVER,))
    if isinstance(waiting, Unknown):
        return CannotTell(f"the parked coroutines: {missing(waiting)}")
    if not waiting.requests:
        cites = (facts.coroutines.cite,) if isinstance(facts.coroutines, Known) else ()
        return RuledOut(
            "no request stands in a nameless driver", tuple(request.cite for request in waiting.moving[:3]) or cites
        )
    disks = their_disks(facts, waiting.requests)
    at_its_end = [last_driver(facts, request) for request in waiting.requests]
    ends = tuple(dict.fromkeys(subjects.Driver(node.name, node.driver) for node in at_its_end if node is not None))
    known_to_hold = None not in at_its_end
    number = waiting.counted()
    verb = "stands" if len(waiting.requests) == 1 else "stand"
    place = ", ".join(map(naming.name, ends[:3])) if known_to_hold else "a block driver without a name"
    return Match(
        headline=f"{number} {of_disks(disks)} {verb} inside {place}",
        objects=(*disks, *(ends[:3] if known_to_hold else ())),
        confidence=confidence(proven=False),
        claims=(
            claim(
                "They are parked below the block layer, in functions that this build gives no names.", *waiting.cites
            ),
            *(
                claim(f"The disk's requests end in {node.driver}, which asks no other program.", node.cite)
                for node in at_its_end[:1]
                if node is not None and known_to_hold
            ),
        ),
        stands=stand((Park.DRIVER,), waiting.requests),
        effect=not known_to_hold,
        weight=len(waiting.requests),
    )


SIGNATURES = (
    Signature("block-driver-wait", "block", "requests stand inside a nameless block driver", _driver),
    Signature("blkdebug-suspended", "block", "blkdebug has suspended requests", _blkdebug),
    *(Signature(behind.id, "block", behind.title, behind.judge) for behind in BEHINDS),
    Signature("graph-lock-deadlock", "block", "the block graph's lock and a drain wait for each other", _graph_lock),
    Signature("quiesce-leak", "block", "requests are queued behind a drain", _quiesce_leak),
    Signature(
        "main-loop-nested-poll", "block", ("the main loop waits inside a drain or a synchronous request"), _nested_poll
    ),
)
