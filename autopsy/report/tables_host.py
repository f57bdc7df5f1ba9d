"""The tables of what surrounds QEMU: descriptors, sockets, the host, and what we asked."""

from __future__ import annotations

from autopsy.facts.cite import Fact, Known, T
from autopsy.facts.model.facts import Asked, Facts, Pressure, SocketFact
from autopsy.report.table import ABSENT, Row, Table, shown, table, why
from autopsy.report.units import milliseconds, size

INTERESTING = ("file", "block device", "socket", "io_uring", "timerfd")
MOST_LOG = 40


def descriptors(facts: Facts) -> Table:
    """Return the descriptors that I/O goes through, and eventfds with something in them."""
    known = facts.descriptors.value if isinstance(facts.descriptors, Known) else ()
    rows = [
        Row(
            (
                str(descriptor.fd),
                descriptor.kind,
                descriptor.target,
                ABSENT if descriptor.counter is None else f"{descriptor.counter:,}",
                ", ".join(map(str, descriptor.polled_by[:8])) or ABSENT,
            ),
            (descriptor.cite,),
        )
        for descriptor in known
        if descriptor.kind in INTERESTING or descriptor.counter
    ]
    note = why(facts.descriptors) or f"{len(known):,} are open; shown are those that I/O goes through."
    columns = "Descriptor|Kind|Leads to|Count #|Polled by thread"
    return table("descriptors", "Descriptors", columns, rows, note, most=120)


def sockets(facts: Facts) -> Table:
    """Return each connected socket with its queues and who holds the other end."""
    known = facts.sockets.value if isinstance(facts.sockets, Known) else ()
    rows = [Row(_socket(socket), (socket.cite, *(peer.cite for peer in socket.peers[:2]))) for socket in known]
    columns = "Descriptor|State|Local|Remote|Not read by the VM #|Not read by the other end #|Other end"
    return table("sockets", "Sockets and their other ends", columns, rows, why(facts.sockets), most=120)


def fuse(facts: Facts) -> Table:
    """Return the FUSE mounts that the VM has files on."""
    rows = [
        Row(
            (
                mount.path,
                f"{mount.waiting:,}",
                "; ".join(f"{peer.comm} ({peer.pid}), State {peer.state}" for peer in mount.daemons) or ABSENT,
            ),
            (mount.cite,),
        )
        for mount in (facts.fuse.value if isinstance(facts.fuse, Known) else ())
    ]
    return table("fuse", "FUSE file systems", "Mounted on|Requests waiting #|Daemon", rows)


def pressure(facts: Facts) -> Table:
    """Return how much the host's tasks were stalled."""
    pairs: tuple[tuple[str, Fact[Pressure]], ...] = (
        ("CPU", facts.host.pressure_cpu),
        ("I/O", facts.host.pressure_io),
        ("Memory", facts.host.pressure_memory),
    )
    rows = [
        Row((name, f"{fact.value.some:.1f} %", f"{fact.value.full:.1f} %"), (fact.value.cite,))
        if isinstance(fact, Known)
        else Row((name, "unknown", "unknown"))
        for name, fact in pairs
    ]
    note = "The share of the last 10 s in which some, or all, of the host's tasks waited (PSI)."
    return table("pressure", "Pressure on the host", "Resource|Some #|All #", rows, note)


def host(facts: Facts) -> Table:
    """Return what else is known of the host and of the VM's control group."""
    around = facts.host
    aio = around.aio_in_use
    contexts = f"{aio.value[0]:,} of {aio.value[1]:,}" if isinstance(aio, Known) else ""
    memory = around.memory_limits
    limits = (
        "; ".join(f"{limit.file}: {limit.limit:,} bytes" for limit in memory.value) if isinstance(memory, Known) else ""
    )
    rows = [
        _fact("Control group", around.cgroup, shown(around.cgroup)),
        _fact("Control group frozen", around.frozen, _yes(around.frozen)),
        _fact("Times limited by its CPU quota", around.cpu_limited, shown(around.cpu_limited)),
        _fact("Limits of memory that are reached", memory, limits),
        _fact("Linux AIO contexts in use", aio, contexts),
    ]
    return table("host-facts", "Host", "Fact|Value", rows)


def block_devices(facts: Facts) -> Table:
    """Return the host's block devices with what is in flight."""
    devices = facts.host.block_devices
    rows = [
        Row(
            (device.name, f"{device.in_flight:,}", "yes" if device.suspended else "no"),
            (device.cite,),
            device.suspended,
        )
        for device in (devices.value if isinstance(devices, Known) else ())
    ]
    return table("block-devices", "Block devices of the host", "Device|In flight #|Suspended", rows, why(devices))


def mounts(facts: Facts) -> Table:
    """Return the mounts that the VM's files lie on."""
    known = facts.host.mounts
    used = _used(facts)
    rows = [
        Row((mount.path, mount.fstype, mount.source), (mount.cite,))
        for mount in (known.value if isinstance(known, Known) else ())
        if mount.path in used
    ]
    return table("mounts", "Mounts that the VM has files on", "Mounted on|Type|Source", rows, why(known), most=60)


def _used(facts: Facts) -> set[str]:
    """Return the mount points that the VM's files lie below: for each file the longest."""
    disks = facts.disks.value if isinstance(facts.disks, Known) else ()
    files = {node.filename for disk in disks for node in disk.nodes}
    if isinstance(facts.descriptors, Known):
        files |= {descriptor.target for descriptor in facts.descriptors.value if descriptor.kind == "file"}
    points = {mount.path for mount in facts.host.mounts.value} if isinstance(facts.host.mounts, Known) else set()
    below = [[point for point in points if file.startswith(point.rstrip("/") + "/")] for file in files]
    return {max(above, key=len) for above in below if above}


def log(facts: Facts) -> Table:
    """Return the lines of the host's and the VM's logs that speak of storage, memory or this VM."""
    lines = [("VM's log", line) for line in facts.host.vm_log] + [("host", line) for line in facts.host.log]
    rows = [Row((source, line.text), (line.cite,)) for source, line in lines]
    return table("log", "Log lines that speak of storage, memory or this VM", "Log|Line", rows[-MOST_LOG:])


def questions(facts: Facts) -> Table:
    """Return everything that was asked of the monitor, with how long each answer took."""
    rows = [_question(question) for question in facts.monitor.asked]
    columns = "Question|Snapshot|Outcome|Took #|Deadline #|Why"
    return table("questions", "Questions to the monitor", columns, rows, most=300)


def _question(asked: Asked) -> Row:
    exchange = asked.exchange
    silent = exchange.outcome in {"no answer", "silent"}
    return Row(
        (
            exchange.question + (f" {_arguments(exchange.arguments)}" if exchange.arguments else ""),
            "second" if asked.again else "first",
            exchange.outcome,
            ABSENT if exchange.outcome == "skipped" else milliseconds(exchange.ms),
            milliseconds(exchange.deadline_ms),
            exchange.why or exchange.peer or ABSENT,
        ),
        (asked.cite,),
        silent,
    )


def _arguments(arguments: dict[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in arguments.items())[:120]


def _socket(socket: SocketFact) -> tuple[str, ...]:
    ends = "; ".join(f"{peer.comm} ({peer.pid}), State {peer.state}" for peer in socket.peers)
    listens = socket.state == "LISTEN"  # its queues count connections, not bytes
    return (
        str(socket.fd),
        f"{socket.family} {socket.state}".strip(),
        socket.local or ABSENT,
        socket.remote or ABSENT,
        ABSENT if socket.received_queue is None or listens else size(socket.received_queue),
        ABSENT if socket.send_queue is None or listens else size(socket.send_queue),
        ends or ABSENT,
    )


def _fact(name: str, fact: Fact[T], value: str) -> Row:
    return (
        Row((name, value or "none"), (fact.cite,)) if isinstance(fact, Known) else Row((name, f"unknown: {fact.why}"))
    )


def _yes(fact: Fact[bool]) -> str:
    return "" if not isinstance(fact, Known) else "yes" if fact.value else "no"
