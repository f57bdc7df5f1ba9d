"""The process itself does not run: stopped, traced, or its control group is frozen."""

from __future__ import annotations

from autopsy.diagnose.once import once
from autopsy.diagnose.queries.kernel_stacks import waits_for
from autopsy.diagnose.queries.peers.programs import FREEZER
from autopsy.diagnose.queries.threads import looks, named, slept_through, threads
from autopsy.diagnose.queries.wording import count, missing, sentence
from autopsy.diagnose.signature import CannotTell, Judgement, Match, RuledOut, Signature, claim
from autopsy.facts import subjects
from autopsy.facts.cite import Cite, Known, Unknown
from autopsy.facts.model.facts import Facts, Role, ThreadFact, ThreadSnapshot

DUMPS = frozenset({"do_coredump", "vfs_coredump", "coredump_wait", "elf_core_dump"})


@once
def _seen(facts: Facts) -> tuple[tuple[ThreadFact, ThreadSnapshot], ...]:
    """Return the process's own threads (not the kernel's workers in it) at the first look."""
    return tuple(
        (thread, looks(thread)[0]) for thread in threads(facts) if thread.role is not Role.KERNEL and looks(thread)
    )


def _stopped(facts: Facts) -> Judgement:
    seen = _seen(facts)
    if not seen:
        return CannotTell("every thread's State in /proc (evidence/witness/tasks.txt)")
    stopped = [(thread, look) for thread, look in seen if look.state == "T"]
    # A stop does not reach a thread that sleeps in the kernel uninterruptibly: it stops as soon as it comes out.
    inside = [(thread, look) for thread, look in seen if look.state == "D"]
    cites = tuple(look.cite for _, look in (stopped or seen)[:4])
    if not stopped or len(stopped) + len(inside) < len(seen):
        return RuledOut(f"{len(seen) - len(stopped)} of {count(len(seen), 'thread')} are not in State T", cites)
    whole = f"all {count(len(seen), 'thread')} are in State T"
    if inside:
        whole = f"{count(len(stopped), 'thread')} in State T, and {len(inside)} in State D, which a stop does not reach"
    later = [thread.again.value for thread, _ in stopped if isinstance(thread.again, Known)]
    runs = bool(later) and all(look.state != "T" for look in later)
    return Match(
        headline=f"The process was stopped (SIGSTOP or SIGTSTP), and runs again: at the first look {whole}"
        if runs
        else f"The process is stopped (SIGSTOP or SIGTSTP): {whole}",
        objects=(subjects.Process(facts.vm.pid),),
        confidence="likely" if runs else "proven",
        claims=(
            claim(f"{sentence(whole)}, before anything was asked of the VM.", *cites),
            *((claim("At the last look none of them was.", *(look.cite for look in later[:4])),) if runs else ()),
            claim("No thread is traced (TracerPid is 0): a signal stopped it, no debugger.", *cites),
            *(
                claim(
                    f"{sentence(named(thread))} stops when it leaves {look.syscall.name or 'the kernel'}.",
                    look.cite,
                )
                for thread, look in inside[:4]
            ),
        ),
        stops_all=True,
        weight=len(seen),
    )


def _traced(facts: Facts) -> Judgement:
    seen = _seen(facts)
    if not seen:
        return CannotTell("every thread's TracerPid in /proc (evidence/witness/tasks.txt)")
    stopped = [(thread, look) for thread, look in seen if look.tracer and look.state == "t"]
    # A tracer such as strace stops a thread at each of its system calls, and lets it go on.
    held = [(thread, look) for thread, look in stopped if slept_through(thread) is not False]
    if not held:
        traced = [look.cite for _, look in seen if look.tracer]
        why = "a tracer is attached, but no thread is stopped by it" if traced else "no thread has a tracer"
        why = "a tracer is attached, and lets the threads that it stopped go on" if stopped else why
        return RuledOut(why, tuple(traced[:4]) or (seen[0][1].cite,))
    stopped, tracer = held, held[0][1].tracer
    sure = len(stopped) == len(seen) or any(slept_through(thread) for thread, _ in stopped)
    return Match(
        headline=f"A debugger holds the VM: {count(len(stopped), 'thread')} stopped by tracer {tracer}",
        objects=(subjects.Process(facts.vm.pid), subjects.Tracer(tracer)),
        confidence="proven" if sure else "likely",
        claims=(
            claim(
                f"{len(stopped)} of {count(len(seen), 'thread')} are in State t with TracerPid {tracer}.",
                *(look.cite for _, look in stopped[:4]),
            ),
        ),
        stops_all=True,
        weight=len(stopped),
    )


def _frozen(facts: Facts) -> Judgement:
    seen = _seen(facts)
    trapped = [(thread, look) for thread, look in seen if FREEZER & {look.wchan, *look.kernel_stack}]
    frozen, group = facts.host.frozen, facts.host.cgroup.value if isinstance(facts.host.cgroup, Known) else "unknown"
    says_frozen = isinstance(frozen, Known) and frozen.value
    group_cites: list[Cite] = [frozen.cite] if isinstance(frozen, Known) else []
    if says_frozen and group_cites:
        # The frozen group may be one above the VM's own: its file's folder names it.
        group = group_cites[0].text.partition(": ")[0].rpartition("/")[0] or group
    if says_frozen or len(trapped) * 2 > len(seen):
        cites = (*(group_cites if says_frozen else ()), *(look.cite for _, look in trapped[:4]))
        return Match(
            headline=f"The control group of the VM is frozen: {group}",
            objects=(subjects.ControlGroup(group), subjects.Process(facts.vm.pid)),
            confidence="proven",
            claims=(
                claim(f"The freezer holds {group}: nothing in it runs.", *cites),
                claim(f"{count(len(trapped), 'thread')} of {len(seen)} sleep in the freezer.", *cites),
            ),
            stops_all=True,
            weight=len(seen),
        )
    if isinstance(frozen, Unknown) and not seen:
        return CannotTell(missing(frozen))
    words = " and cgroup.events says frozen 0" if group_cites else ""
    return RuledOut(f"no thread sleeps in the freezer{words}", tuple(group_cites) or (seen[0][1].cite,))


def _dumping(facts: Facts) -> Judgement:
    """Tell of a crash that is not over: the kernel writes the core, and whoever waits for QEMU waits for that."""
    seen = _seen(facts)
    if not seen:
        return CannotTell("every thread's kernel stack and status in /proc (evidence/witness/tasks.txt)")
    writing = [(thread, look) for thread, look in seen if DUMPS & set(look.kernel_stack)]
    dumping = writing or [(thread, look) for thread, look in seen if look.dumping]
    if not dumping:
        return RuledOut("the kernel does not write its core", (seen[0][1].cite,))
    thread, look = dumping[0]
    stands = bool(writing) and slept_through(thread) is True
    what = waits_for(look) if writing else ""
    why = f", and does not go on: it waits {what}" if stands and what else ""
    return Match(
        headline=f"QEMU has crashed, and the kernel writes its core{why}",
        objects=(subjects.Process(facts.vm.pid),),
        confidence="proven",
        claims=(
            claim(
                f"{sentence(named(thread))} is in {next(iter(DUMPS & set(look.kernel_stack)), 'the dump of a core')}.",
                look.cite,
                look.stack_cite,
            ),
            claim("A process that dumps its core runs no more: it ends as soon as that is written.", look.cite),
        ),
        stops_all=True,
        weight=len(seen),
    )


SIGNATURES = (
    Signature("core-dumping", "process", "QEMU has crashed, and its core is being written", _dumping),
    Signature("process-stopped", "process", "the process is stopped by a signal", _stopped),
    Signature("process-traced", "process", "a debugger holds the process", _traced),
    Signature("cgroup-frozen", "process", "the control group is frozen", _frozen),
)
