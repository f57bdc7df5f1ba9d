"""Block layer and jobs: waits that can never end, because what they wait for needs whoever waits."""

from __future__ import annotations

from autopsy.diagnose.diagnosis import Where
from autopsy.diagnose.frames.stacks import NamedStack, WaitKind, stacks
from autopsy.diagnose.queries import naming
from autopsy.diagnose.queries.wording import count, sentence
from autopsy.diagnose.signature import CannotTell, Judgement, Match, Signature, claim
from autopsy.facts import subjects
from autopsy.facts.cite import Known
from autopsy.facts.model.facts import CoroutineFact, Facts, Park, Role
from autopsy.facts.model.yield_points import Layer

DRAINS = (
    "bdrv_do_drained_begin",
    "bdrv_drain",
    "bdrv_subtree_drained",
    "bdrv_parent_drained",
    "bdrv_co_yield_to_drain",
    "blk_drain",
    "bdrv_drained_begin",
)
JOBS = ("job_co_entry", "blockdev_create_run", "mirror_run", "backup_run", "commit_run", "stream_run")
GRAPH = ("bdrv_graph_wrlock", "bdrv_graph_wrlock_drained")
OF_A_LAYER: dict[Layer, Where] = {Layer.PEER: "peer", Layer.THROTTLE: "throttle"}
JOB_ENDS = (
    "job_exit",
    "job_finalize",
    "job_completed",
    "job_do_finalize",
    "job_do_dismiss",
    "job_dismiss",
    "job_clean",
    "job_prepare",
    "job_txn",
    "job_unref",
    "job_cancel",
    "job_finish_sync",
    "job_abort",
    "block_job_",
    "mirror_exit",
    "mirror_drain",
    "backup_clean",
    "commit_complete",
    "stream_prepare",
    "child_job_",
)


def called(stack: NamedStack) -> str:
    """Return whose stack it is, in words."""
    return naming.name(subjects.thread(stack.thread))


def match(headline: str, *cited: NamedStack, claims: tuple[str, ...] = (), where: object = None) -> Match:
    """Return a match about some stacks: each is cited, with a sentence of its own."""
    words = claims or tuple(
        f"{sentence(called(stack))} is in {', under '.join(dict.fromkeys(shown(stack)))}." for stack in cited
    )
    return Match(
        headline=headline,
        objects=tuple(subjects.thread(stack.thread) for stack in cited),
        confidence="likely",
        claims=tuple(claim(text, stack.cite) for text, stack in zip(words, cited, strict=False)),
        implied=True,
        weight=1,
        where=where,  # type: ignore[arg-type]  # one of the closed vocabulary, from the callers below
    )


def shown(stack: NamedStack) -> tuple[str, ...]:
    """Return the few functions that say where a stack is: what waits, what it waits in, and what that is for."""
    named = [name for name in stack.names if name]
    polls = stack.polls_for[:1]
    outside = [name for name in stack.outer if name][:2]
    return tuple(named[:1]) + polls + tuple(outside) if named else ("a function without a name",)


def nothing(why: str, known_stacks: tuple[NamedStack, ...]) -> Judgement:
    """Say that the stacks that there are do not show it; there may be others."""
    return CannotTell(
        f"{why}: all threads' frames, and the parked coroutines" if known_stacks else "the threads' frames"
    )


def _graph(facts: Facts) -> Judgement:
    """Somebody wants the graph for himself, and whom he waits for needs what he holds."""
    known_stacks = stacks(facts)
    writers = [stack for stack in known_stacks if stack.has(*GRAPH) and stack.wait in {WaitKind.POLL, WaitKind.LOCK}]
    drainers = [stack for stack in known_stacks if stack.wait is WaitKind.POLL and (stack.is_main or stack.holds_bql)]
    readers = _parked(facts, Park.GRAPH_LOCK)
    if drainers and readers:
        parked = f"a request is parked in bdrv_graph_co_rdlock ({len(readers)} in what was pasted)"
        return match(
            f"{sentence(called(drainers[0]))} drains requests that wait for the block graph's lock",
            drainers[0],
            claims=(f"{sentence(called(drainers[0]))} polls in {drainers[0].polls_for[0]}, and {parked}.",),
        )
    for writer in writers:
        others = [
            stack
            for stack in known_stacks
            if stack is not writer and (stack.wants_context or stack.wait is WaitKind.POLL)
        ]
        if others:
            other = others[0]
            words = "waits for an AioContext" if other.wants_context else f"polls in {other.polls_for[0]}"
            mine = "waits for an AioContext" if writer.wants_context else "waits for the graph's readers"
            return match(
                f"The block graph's lock and an AioContext wait for each other: {called(writer)} wants to change the "
                f"graph, and {called(other)} {words}",
                writer,
                other,
                claims=(
                    f"{sentence(called(writer))} {mine}, in {writer.has(*GRAPH)}.",
                    f"{sentence(called(other))} {words}.",
                ),
            )
    if writers:
        return match(
            f"{sentence(called(writers[0]))} waits in {writers[0].has(*GRAPH)} for readers that do not end", writers[0]
        )
    return nothing("no thread changes the block graph", known_stacks)


def _parked(facts: Facts, *parks: Park) -> tuple[CoroutineFact, ...]:
    coroutines = facts.coroutines.value if isinstance(facts.coroutines, Known) else ()
    return tuple(coroutine for coroutine in coroutines if coroutine.park in parks)


def _nested(facts: Facts) -> Judgement:
    """A poll inside another one's call: the outer cannot end before the inner, and the inner may wait for the outer."""
    known_stacks = stacks(facts)
    for stack in known_stacks:
        polls = stack.polls_for
        if stack.wait is WaitKind.POLL and len(polls) > 1:
            return match(
                f"{sentence(called(stack))} waits in {polls[0]}, inside of its wait in {polls[-1]}: neither ends "
                "before the other",
                stack,
                claims=(f"{sentence(called(stack))} polls in {', inside of '.join(polls[:4])}.",),
            )
    for stack in (poller for poller in known_stacks if poller.wait is WaitKind.POLL and not _told_by_requests(facts)):
        drains = stack.polls_for[0].startswith(("bdrv_", "blk_"))
        if stack.thread.role is Role.IOTHREAD and drains and not any(other.wants_context for other in known_stacks):
            return match(
                f"{sentence(called(stack))} waits in {stack.polls_for[0]} inside of its own loop for requests that "
                "do not end",
                stack,
            )
        if stack.thread.role in {Role.MIGRATION, Role.OTHER} and stack.holds_bql:
            return match(
                f"{sentence(called(stack))} holds the BQL and polls in {stack.polls_for[0]} for what only the main "
                "loop can run",
                stack,
            )
    return nothing("no thread polls inside of another poll", known_stacks)


def _nested_end(facts: Facts) -> Judgement:
    """The end of a job polls, and what its poll ran is the end of a job again: the outer cannot go on meanwhile."""
    known_stacks = stacks(facts)
    for stack in known_stacks:
        polls = stack.polls_for
        if stack.wait is not WaitKind.POLL or len(polls) < 2:
            continue
        if end := ended_twice(stack.names, polls):
            return match(
                f"{sentence(called(stack))} ends a job inside of a job's end ({end}): it waits in {polls[0]}, inside "
                f"of its wait in {polls[-1]}, and the outer end goes on after the inner one only",
                stack,
                claims=(
                    f"{sentence(called(stack))} is in {end} twice, and polls in {polls[0]} inside of {polls[-1]}.",
                ),
            )
    return nothing("no thread ends a job inside of a job's end", known_stacks)


def ended_twice(names: tuple[str, ...], polls: tuple[str, ...]) -> str:
    """Return the function of a job's end that a stack is in on both sides of its outermost poll, empty for none."""
    outer = len(names) - 1 - names[::-1].index(polls[-1])
    inside = {name for name in names[:outer] if name.startswith(JOB_ENDS)}
    return next((name for name in names[outer:] if name in inside), "")


def _told_by_requests(facts: Facts) -> tuple[CoroutineFact, ...]:
    """Return the parked requests whose place says what they wait for: a peer, or a limit."""
    coroutines = facts.coroutines.value if isinstance(facts.coroutines, Known) else ()
    return tuple(
        coroutine
        for coroutine in coroutines
        if coroutine.park.layer in OF_A_LAYER and not (isinstance(coroutine.stuck, Known) and not coroutine.stuck.value)
    )


def _parked_drain(facts: Facts) -> Judgement:
    """A drain waits for a request, and where that is parked says what it waits for itself."""
    known_stacks = stacks(facts)
    requests = _told_by_requests(facts)
    for stack in (poller for poller in known_stacks if poller.wait is WaitKind.POLL and requests):
        park = requests[0].park
        same = sum(request.park is park for request in requests)
        return match(
            f"{sentence(called(stack))} waits in {stack.polls_for[0]} for {count(same, 'request')} that "
            f"{'is' if same == 1 else 'are'} parked: {park.value}",
            stack,
            where=OF_A_LAYER[park.layer],
        )
    return nothing("no drain waits for a request that is parked at a limit or a peer", known_stacks)


def _context(facts: Facts) -> Judgement:
    """One polls, and another waits for an AioContext: only an AioContext's owner polls for what lies in it."""
    known_stacks = stacks(facts)
    wanting = [stack for stack in known_stacks if stack.wants_context]
    for stack in (poller for poller in known_stacks if poller.wait is WaitKind.POLL and wanting):
        return match(
            f"{sentence(called(wanting[0]))} waits for an AioContext, and {called(stack)} polls in "
            f"{stack.polls_for[0]} for what only that one can end",
            wanting[0],
            stack,
        )
    return nothing("no thread waits for an AioContext while another one polls", known_stacks)


def _job_end(facts: Facts) -> Judgement:
    """The end of a job drains: it holds what the requests need to end, or their end is queued behind it."""
    known_stacks = stacks(facts)
    working = any(stack.thread.role is Role.WORKER and stack.wait is WaitKind.CALL for stack in known_stacks)
    for stack in known_stacks:
        if stack.wait is not WaitKind.POLL or not (stack.is_main or stack.holds_bql) or working:
            continue
        job = stack.begins(*JOB_ENDS, *JOBS)
        if not job or _parked(facts, Park.NBD_REPLY, Park.NBD_CONNECT):
            continue
        part = "in the work" if job in JOBS else "at the end"
        return match(
            f"{sentence(called(stack))} waits in {stack.polls_for[0]} {part} of a block job ({job}) for requests "
            "that cannot end meanwhile",
            stack,
            claims=(f"{sentence(called(stack))} polls in {stack.polls_for[0]}, under {job}.",),
        )
    return nothing("no thread waits at the end of a job", known_stacks)


def _ide(facts: Facts) -> Judgement:
    known_stacks = stacks(facts)
    for stack in known_stacks:
        cancel = stack.has("ide_cancel_dma_sync", "ide_bus_reset", "ide_reset", "ahci_reset_port", "bmdma_cmd_writeb")
        if cancel and stack.wait is WaitKind.POLL:
            return match(
                f"{sentence(called(stack))} cancels an IDE or AHCI request ({cancel}) and drains for it", stack
            )
    return nothing("no thread cancels an IDE request", known_stacks)


def _negotiation(facts: Facts) -> Judgement:
    """A drain waits for an NBD client that negotiates, and nobody lets the negotiation go on."""
    known_stacks = stacks(facts)
    waiting = [coroutine for coroutine in _parked(facts, Park.NBD_CONNECT) if _negotiates(coroutine)]
    drains = [stack for stack in known_stacks if stack.wait is WaitKind.POLL]
    for stack in drains:
        if waiting or stack.begins("nbd_receive_negotiate", "nbd_start_negotiate", "nbd_client_connect"):
            return match(
                f"{sentence(called(stack))} waits in {stack.polls_for[0]} while the NBD client negotiates with its "
                "server",
                stack,
            )
    return nothing("no drain waits for an NBD negotiation", known_stacks)


def _negotiates(coroutine: CoroutineFact) -> bool:
    return any(
        frame.function.startswith(("nbd_receive_negotiate", "nbd_start_negotiate", "nbd_opt_"))
        for frame in coroutine.frames
    )


SIGNATURES = (
    Signature(
        "graph-lock-against-context", "block", "the block graph's lock and an AioContext wait for each other", _graph
    ),
    Signature("nbd-negotiation-drained", "block", "a drain waits for an NBD negotiation", _negotiation),
    Signature("ide-cancel-drains", "device", "a cancelled IDE request is drained", _ide),
    Signature("job-end-nested", "block", "a job ends inside of a job's end", _nested_end),
    Signature("poll-inside-poll", "block", "a wait lies inside of another one", _nested),
    Signature("drain-waits-for-parked", "block", "a drain waits for a request that is parked", _parked_drain),
    Signature("context-held-over-poll", "block", "an AioContext is held over a poll that needs it", _context),
    Signature("job-end-drains", "block", "the end of a block job drains", _job_end),
)
