"""Turns a bundle into facts."""

from __future__ import annotations

from autopsy.bundle import layout, records
from autopsy.bundle.heap import records as heap_records
from autopsy.bundle.manifest import StepRecord
from autopsy.bundle.pid_namespaces import Numbers, numbers
from autopsy.facts import (
    command_line,
    configured_line,
    coroutines,
    descriptors,
    device_backends,
    host,
    limits,
    locks,
    monitor,
    sockets,
    threads,
    vm_end,
)
from autopsy.facts.before.ring import gather_ring
from autopsy.facts.cite import Cite, Fact, Known, Unknown
from autopsy.facts.evidence import Evidence
from autopsy.facts.evidence import records as decode
from autopsy.facts.model.facts import Facts, MonitorFact, Origin, Role, Times, VmFact
from autopsy.facts.storage import (
    configured_disks,
    disks,
    exports,
    images,
    jobs,
    layers,
    nodes,
    requests,
    rings,
    throttle,
    virtqueues,
)
from autopsy.facts.untrusted import mapping, number, sequence

TICKS = 100  # a second, in /proc/PID/stat: USER_HZ of every architecture that QEMU runs on


def gather_facts(evidence: Evidence) -> Facts:
    """Return everything that the bundle tells. What is missing or damaged is Unknown, never an exception."""
    talk = monitor.gather_conversation(evidence)
    heap, heap_again = _heap(evidence)
    line = command_line.read_command_line(evidence)
    if not line.arguments and evidence.manifest.imported is not None:
        line = configured_line.read(evidence)  # a capture that lacks it says so
    own = numbers(evidence.read(layout.evidence(layout.WITNESS, layout.TASKS)))
    found_threads = threads.gather_threads(evidence, _roles(talk, own))
    found_descriptors = descriptors.gather_descriptors(evidence)
    graph = nodes.gather_nodes(talk, heap, line, images.gather_images(evidence, line, found_descriptors))
    shaped = virtqueues.shapes(evidence)
    target = evidence.manifest.target
    served = exports.gather_exports(talk, line) if target.program == "qemu-storage-daemon" else None
    found_disks = disks.gather_disks(talk, heap, line, graph, shaped, served)
    found_locks = locks.gather_locks(evidence, heap, found_threads)
    found_sockets = sockets.gather_sockets(evidence)
    found_fuse = sockets.fuse(evidence)
    found_jobs = jobs.gather_jobs(talk, heap)
    died = talk.died_at.value.exchange.question if isinstance(talk.died_at, Known) else ""
    arguments: Fact[tuple[str, ...]] = (
        Known(line.arguments, line.cite)
        if line.arguments
        else Unknown(command_line.CMDLINE, "the command line was not read")
    )
    return Facts(
        vm=VmFact(
            pid=target.pid,
            name=target.name,
            manager=target.manager,
            qemu_version=target.qemu_version,
            program=target.program,
            build_id=target.build_id,
            arguments=arguments,
            started_seconds=target.start_ticks / TICKS,
            end=vm_end.gather_end(evidence),
            domain=target.domain.word if target.domain else "",
            connection=target.domain.connection if target.domain else "",
            monitor=next(
                (socket.reachable for socket in target.monitors if socket.protocol == "qmp" and socket.reachable), ""
            ),
            monitors=tuple(socket.address for socket in target.monitors if socket.protocol == "qmp"),
            configured_disks=configured_disks.gather_configured_disks(evidence),
        ),
        times=_times(evidence),
        threads=found_threads,
        coroutines=requests.link(
            coroutines.gather_coroutines(evidence, heap),
            found_disks,
            nodes.drivers(talk),
            tuple(graph.nodes.values()),
            found_jobs,
        ),
        disks=found_disks,
        nodes=tuple(graph.nodes.values()),
        throttle_groups=throttle.gather_throttle_groups(talk, heap, line, found_disks),
        jobs=found_jobs,
        locks=found_locks,
        main_loop=locks.main_loop(evidence, found_threads, found_locks, died),
        descriptors=found_descriptors,
        most_descriptors=descriptors.most_descriptors(evidence),
        polls=descriptors.poll_sets(evidence),
        sockets=found_sockets,
        sockets_again=sockets.gather_sockets_again(evidence, found_sockets),
        fuse=found_fuse,
        fuse_again=sockets.gather_fuse_again(evidence, found_fuse),
        layers=layers.gather_layers(evidence),
        listeners=sockets.gather_listeners(evidence),
        fifo_openings=sockets.gather_fifo_openings(evidence),
        process_waits=sockets.gather_process_waits(evidence),
        failing_files=images.gather_failing_files(evidence),
        helpers=device_backends.gather_back_ends(line, found_sockets, monitor.answer(talk, "query-chardev")),
        rings=rings.gather_rings(evidence),
        host=host.gather_host(evidence),
        run_state=monitor.run_state(talk),
        run_state_again=monitor.run_state(talk, again=True),
        monitor=talk,
        migration=monitor.migration(talk),
        migration_pace=monitor.migration_pace(talk),
        symbols=_symbols(evidence),
        heap_walked=_walked(evidence),
        heap=heap,
        heap_again=heap_again,
        virtqueues=virtqueues.gather_virtqueues(evidence, heap, heap_again, shaped, found_disks, line),
        origin=_origin(evidence),
        crash=evidence.manifest.imported.crash if evidence.manifest.imported else "",
        left_out=(*limits.gather_limits(evidence), *graph.left_out),
        before=gather_ring(evidence),
        polls_again=decode(evidence, layout.SECOND_EXPOSURE, layout.POLLS, tuple[records.PollSet, ...]),
        frames_again=decode(evidence, layout.SECOND_EXPOSURE, layout.THREADS, tuple[records.ThreadStack, ...]),
    )


def _origin(evidence: Evidence) -> Origin:
    imported = evidence.manifest.imported
    if imported is None:
        return Origin.CAPTURE
    return Origin.CORE if imported.whole else Origin.PASTE


def _heap(evidence: Evidence) -> tuple[Fact[heap_records.HeapSnapshot], Fact[heap_records.HeapSnapshot]]:
    walk = decode(evidence, layout.GDB_THREADS, layout.HEAP, heap_records.Heap)
    if isinstance(walk, Unknown):
        return walk, walk
    heap = walk.value
    absent = Unknown(walk.cite.file, heap.why or "the heap was not walked")
    first: Fact[heap_records.HeapSnapshot] = Known(heap.first, walk.cite) if heap.first else absent
    second: Fact[heap_records.HeapSnapshot] = Known(heap.second, walk.cite) if heap.second else absent
    return first, second


def _walked(evidence: Evidence) -> Fact[bool]:
    heap = decode(evidence, layout.GDB_THREADS, layout.HEAP, heap_records.Heap)
    return heap if isinstance(heap, Unknown) else Known(heap.value.first is not None, heap.cite)


def _roles(talk: MonitorFact, own: Numbers) -> dict[int, Role]:
    """Return the roles that QEMU itself told; its thread ids are those of its own PID namespace."""
    roles: dict[int, Role] = {}
    for question, role in (("query-iothreads", Role.IOTHREAD), ("query-cpus-fast", Role.VCPU)):
        reply = monitor.answer(talk, question)
        for thread in sequence(reply.value) if isinstance(reply, Known) else []:
            roles[own.tid(number(mapping(thread).get("thread-id")))] = role
    roles.pop(0, None)
    return roles


def _times(evidence: Evidence) -> Times:
    manifest = evidence.manifest
    steps = {step.name: step for step in manifest.steps}
    first = steps.get(layout.WITNESS)
    again = steps.get(layout.SECOND_EXPOSURE)
    first_ns = first.start_ns if first else manifest.began.monotonic_ns
    second: Fact[int] = (
        _looked_again(evidence, again)
        if again and again.outcome == "Collected"
        else Unknown(layout.MANIFEST, f"second snapshot: {again.why if again else 'not part of this capture'}")
    )
    return Times(
        began_ns=manifest.began.monotonic_ns,
        utc=manifest.began.utc,
        zone=manifest.began.zone,
        first_ns=first_ns,
        second_ns=second,
        gap_seconds=(second.value - first_ns) / 1e9 if isinstance(second, Known) else 0.0,
        stopped_ns=sum(step.stop_ns for step in manifest.steps),
    )


def _looked_again(evidence: Evidence, step: StepRecord) -> Known[int]:
    """Return when the second look was taken: the step begins with a wait, so its own start is too early."""
    frozen = decode(evidence, layout.SECOND_EXPOSURE, layout.FREEZE_RECORD, records.FreezeRecord)
    if isinstance(frozen, Known) and step.start_ns <= frozen.value.frozen_at_ns <= step.end_ns:
        return Known(frozen.value.frozen_at_ns, frozen.cite)
    return Known(step.start_ns, Cite(layout.MANIFEST, 0, layout.SECOND_EXPOSURE))


def _symbols(evidence: Evidence) -> Fact[str]:
    """Return how well QEMU's own names are known: dwarf, symtab, dynsym or none."""
    modules = decode(evidence, layout.GDB_THREADS, layout.MODULES, tuple[records.Module, ...])
    if isinstance(modules, Unknown):
        return modules
    build_id = evidence.manifest.target.build_id
    own = next((module for module in modules.value if build_id and module.build_id == build_id), None)
    own = own or next(
        (module for module in modules.value if "qemu" in module.path or module.path.endswith("/kvm")), None
    )
    if own is None:
        return Unknown(modules.cite.file, "QEMU's own binary is not among the modules")
    return Known(own.symbols, Cite(modules.cite.file, 0, f"{own.path}: {own.symbols}"))
