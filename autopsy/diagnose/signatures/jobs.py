"""Block jobs, backups and migration: what copies data away while the guest runs."""

from __future__ import annotations

from autopsy.diagnose.queries.kernel_stacks import family
from autopsy.diagnose.queries.limits.at_limits import copies_held
from autopsy.diagnose.queries.migration import SAVING, sends_state
from autopsy.diagnose.queries.requests import (
    confidence,
    job_of,
    of_disks,
    stand,
    standing,
    their_disks,
)
from autopsy.diagnose.queries.socket_peers import about_sockets, peers_of, socket_of, stands, state
from autopsy.diagnose.queries.threads import by_role, functions, looks, named, slept_through, threads
from autopsy.diagnose.queries.wording import missing, sentence
from autopsy.diagnose.signature import CannotTell, Judgement, Match, RuledOut, Signature, claim
from autopsy.diagnose.signatures.block import LEAVES
from autopsy.facts import subjects
from autopsy.facts.cite import Known, Unknown
from autopsy.facts.model.facts import Facts, JobFact, Park, Role

LARGEST_STEP = 16 << 20  # the most that a job copies before it counts it, in bytes
RECEIVING = frozenset({"read", "readv", "recvmsg", "recvfrom"})
WAITING = frozenset({"ready", "pending", "concluded"})


def _stalled(facts: Facts) -> Judgement:
    if isinstance(facts.jobs, Unknown):
        return CannotTell(f"the block jobs: {missing(facts.jobs)}")
    jobs = facts.jobs.value
    if not jobs or (at_limit := _at_limit(facts, jobs)):
        return at_limit if jobs and at_limit else RuledOut("there is no block job", (facts.jobs.cite,))
    running = [job for job in jobs if job.status in {"running", "created", "aborting", "waiting"} or not job.status]
    unknown = [job for job in running if isinstance(job.progressed, Unknown)]
    stalled = [job for job in running if isinstance(job.progressed, Known) and job.progressed.value == 0]
    stalled = [job for job in stalled if not job.paused and (job.total == 0 or job.current < job.total)]
    slow = [job for job in stalled if job.speed and job.speed * facts.times.gap_seconds < LARGEST_STEP]
    stalled = [job for job in stalled if job not in slow]
    if slow and not stalled:
        return CannotTell(f"whether job {slow[0].id}, limited to {slow[0].speed} bytes/s, goes on: a longer --gap")
    if not stalled:
        if unknown:
            return CannotTell(f"whether job {unknown[0].id} goes on: the second snapshot's query-jobs")
        words = ", ".join(f"{job.id} ({job.status})" for job in jobs[:3])
        return RuledOut(f"no running job stands still: {words}", tuple(job.cite for job in jobs[:3]))
    requests = standing(facts, LEAVES)
    job = stalled[0]
    later = (job.progressed.cite,) if isinstance(job.progressed, Known) else ()
    return Match(
        headline=f"Job {job.id} ({job.kind}) does not go on: {job.current} of {job.total}",
        objects=tuple(subjects.Job(stalled_job.id) for stalled_job in stalled),
        confidence="likely",
        claims=tuple(
            claim(
                (
                    f"Job {stalled_job.id} ({stalled_job.kind}) stood at {stalled_job.current} "
                    f"of {stalled_job.total} in both snapshots."
                ),
                stalled_job.cite,
                *later,
            )
            for stalled_job in stalled[:4]
        ),
        effect=isinstance(requests, Unknown),
        beside=not isinstance(requests, Unknown) and not requests.requests,
        weight=len(stalled),
    )


def _at_limit(facts: Facts, jobs: tuple[JobFact, ...]) -> RuledOut | None:
    """Rule out the only job if its copies wait for a limit: it goes on at that pace, and counts a copy at its end."""
    copies = copies_held(facts)
    if not copies or len(job_of(facts, copies)) != len(jobs):
        return None
    return RuledOut("the job's copies wait for QEMU's own I/O limit", tuple(copy.cite for copy in copies[:4]))


def _jobs(facts: Facts) -> tuple[JobFact, ...]:
    return facts.jobs.value if isinstance(facts.jobs, Known) else ()


def _waits_for_manager(facts: Facts) -> Judgement:
    if isinstance(facts.jobs, Unknown):
        return CannotTell(f"the block jobs: {missing(facts.jobs)}")
    held = [job for job in facts.jobs.value if job.paused or job.status in WAITING]
    if not held:
        return RuledOut("no job is paused or waits for its manager", (facts.jobs.cite,))
    job = held[0]
    return Match(
        headline=f"Job {job.id} ({job.kind}) is {job.status or 'paused'} and waits for whoever started it",
        objects=tuple(subjects.Job(held_job.id) for held_job in held),
        confidence="likely",
        claims=tuple(
            claim(f"Job {held_job.id} ({held_job.kind}): {held_job.status}.", held_job.cite) for held_job in held[:4]
        ),
        harmless=True,
        weight=0,
    )


def _copy_before_write(facts: Facts) -> Judgement:
    waiting = standing(facts, (Park.COPY_BEFORE_WRITE, Park.COPY_MEMORY))
    if isinstance(waiting, Unknown):
        return CannotTell(f"the parked coroutines: {missing(waiting)}")
    if not waiting.requests:
        cites = (facts.coroutines.cite,) if isinstance(facts.coroutines, Known) else ()
        return RuledOut(
            "no guest write waits for a backup", tuple(request.cite for request in waiting.moving[:3]) or cites
        )
    disks = their_disks(facts, waiting.requests)
    return Match(
        headline=(f"{waiting.counted('guest write')} {of_disks(disks)} wait until a backup has copied the old data"),
        objects=disks,
        confidence=confidence(proven=waiting.proven),
        claims=(claim("They are parked under the copy-before-write filter.", *waiting.cites),),
        stands=stand((Park.COPY_BEFORE_WRITE, Park.COPY_MEMORY), waiting.requests),
        weight=len(waiting.requests),
    )


def _pve_backup(facts: Facts) -> Judgement:
    waiting = standing(facts, (Park.PVE_BACKUP,))
    if isinstance(waiting, Unknown):
        return CannotTell(f"the parked coroutines: {missing(waiting)}")
    if not waiting.requests:
        return RuledOut("no coroutine waits for Proxmox backup")
    return Match(
        headline=f"{waiting.counted()} wait for the Proxmox backup's target",
        objects=(subjects.Server("Proxmox backup"),),
        confidence=confidence(proven=waiting.proven),
        claims=(claim("They are parked in Proxmox's backup callbacks.", *waiting.cites),),
        stands=stand((Park.PVE_BACKUP,), waiting.requests),
        weight=len(waiting.requests),
    )


def _mirror(facts: Facts) -> Judgement:
    waiting = standing(facts, (Park.MIRROR,))
    if isinstance(waiting, Unknown):
        return CannotTell(f"the parked coroutines: {missing(waiting)}")
    if not waiting.requests:
        return RuledOut("no coroutine waits inside a mirror")
    if copies := copies_held(facts):
        return RuledOut("its copies wait for QEMU's own I/O limit", tuple(copy.cite for copy in copies[:4]))
    return Match(
        headline="A mirror waits for its own requests to its source or target",
        objects=tuple(subjects.Job(job.id) for job in _jobs(facts) if job.kind == "mirror"),
        confidence=confidence(proven=waiting.proven),
        claims=(claim("Its coroutine is parked until a request in flight ends.", *waiting.cites),),
        stands=stand((), waiting.requests),  # without its place: one that waits for nobody has lost its wake-up
        weight=len(waiting.requests),
    )


def _migration(facts: Facts) -> Judgement:
    """A thread that sends the VM's state to somebody who does not read it."""
    if isinstance(facts.threads, Unknown):
        return CannotTell("the threads (evidence/witness/tasks.txt)")
    sending = [thread for thread in threads(facts) if sends_state(thread)]
    blocked = [thread for thread in sending if slept_through(thread) is not False]
    status = facts.migration.value if isinstance(facts.migration, Known) else ""
    if not blocked:
        if not by_role(facts, Role.MIGRATION) and all(isinstance(thread.frames, Unknown) for thread in threads(facts)):
            return CannotTell("the threads' frames (evidence/gdb.threads/threads.json)")
        return RuledOut(
            (f"no thread is blocked while it sends the VM's state{f' (status {status})' if status else ''}"),
            (facts.threads.cite,),
        )
    sockets = tuple(dict.fromkeys(socket for thread in blocked for socket in socket_of(facts, thread)))
    receives = looks(blocked[0])[0].syscall.name in RECEIVING if looks(blocked[0]) else False
    doing, other = ("receiving", ": nobody sends") if receives else ("sending", ": its reader does not read")
    if known := next((known for look in looks(blocked[0])[:1] if (known := family(look)) is not None), None):
        other = f": it waits for {known.words}"
    to = f" {'from' if receives else 'to'} {sockets[0].remote}" if sockets and sockets[0].remote else ""
    return Match(
        headline=f"{sentence(named(blocked[0]))} is blocked {doing} the VM's state{to}"
        f"{state(sockets) if stands(sockets) else other}",
        objects=(
            *(subjects.Server(socket.remote) for socket in sockets[:3] if socket.remote),
            *peers_of(sockets),
            *(subjects.thread(thread) for thread in blocked[:3]),
        ),
        confidence=confidence(proven=any(slept_through(thread) for thread in blocked)),
        claims=(
            *(
                claim(
                    f"{sentence(named(thread))} sleeps in {looks(thread)[0].syscall.name or 'the kernel'}.",
                    looks(thread)[0].cite,
                )
                for thread in blocked[:3]
            ),
            *about_sockets(sockets),
        ),
        weight=len(blocked),
    )


def _savevm(facts: Facts) -> Judgement:
    if isinstance(facts.main_loop, Unknown):
        return CannotTell(f"what the main thread does: {missing(facts.main_loop)}")
    loop = facts.main_loop.value
    main = next(iter(by_role(facts, Role.MAIN)), None)
    names = functions(main) if main else ()
    saving = [
        name
        for name in (*names, loop.under, loop.command)
        if name.startswith(SAVING) or "vmstate" in name or "savevm" in name
    ]
    if not saving:
        if main is None or isinstance(main.frames, Unknown):
            return CannotTell("the main thread's frames (evidence/gdb.threads/threads.json)")
        return RuledOut("the main thread does not save the VM's state", (loop.cite,))
    alive = facts.monitor.alive
    if isinstance(alive, Known) and alive.value:
        return RuledOut("the main thread saved the VM's state, and then answered its monitor", (loop.cite, alive.cite))
    return Match(
        headline=f"The main loop is dead while it saves the VM's state ({saving[0]})",
        objects=tuple(subjects.thread(thread) for thread in by_role(facts, Role.MAIN)),
        confidence=confidence(proven=loop.state in {"nested poll", "blocked in a system call"}),
        claims=(claim(f"The main thread is inside {saving[0]}: {loop.state}.", loop.cite),),
        weight=1,
    )


SIGNATURES = (
    Signature("backup-holds-writes", "job", "a backup holds back the guest's writes", _copy_before_write),
    Signature("pve-backup-stalled", "job", "Proxmox backup's target does not answer", _pve_backup),
    Signature("mirror-waits", "job", "a mirror waits for its own requests", _mirror),
    Signature("job-stalled", "job", "a block job does not go on", _stalled),
    Signature("job-waits-for-manager", "job", "a block job waits for its manager", _waits_for_manager),
    Signature("savevm-blocks-main-loop", "migration", "saving the VM's state blocks the main loop", _savevm),
    Signature("migration-send-blocked", "migration", "the reader of the VM's state does not read", _migration),
)
