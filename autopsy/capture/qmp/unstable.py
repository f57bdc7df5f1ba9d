"""The step that asks what QEMU promises nothing about: only where a person wants it, and last of all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from autopsy.bundle.records import LeftOut, QmpExchange
from autopsy.capture.qmp import commands, guard, session, stability
from autopsy.capture.qmp import step as qmp
from autopsy.capture.qmp.session import Interview
from autopsy.capture.step import Outcome, Scene

GRAPH = "x-debug-query-block-graph"
VIRTIO = "x-query-virtio"
VIRTIO_STATUS = "x-query-virtio-status"
QUEUE_STATUS = "x-query-virtio-queue-status"

MOST_DEVICES = 64
MOST_QUEUES = 16
RINGED = ("virtio-blk", "virtio-scsi")


def ask(scene: Scene) -> Outcome:
    """Ask for what the schema kept from being asked, the block graph, and the rings of the virtio disks."""
    if silent := qmp.silence(scene):
        return silent
    withheld = tuple(_withheld(scene))
    refusal = _refusal(scene, withheld)

    left_out: list[LeftOut] = []

    async def talk(monitor: Interview) -> None:
        for exchange in withheld:
            await monitor.ask(
                exchange.question, exchange.arguments, why_not=refusal if _blocks(exchange, monitor.qemu) else ""
            )
        await monitor.ask(GRAPH, why_not=qmp.lacks(GRAPH, monitor.qemu))
        await _ask_queues(monitor, left_out)
        scene.leave_out(*left_out)

    return qmp.converse(scene, talk, unstable_too=True)


async def _ask_queues(monitor: Interview, left_out: list[LeftOut]) -> None:
    """Ask for the rings of each virtio disk and SCSI controller: `inuse` is how many requests QEMU owes the guest.

    Of a device that cannot be asked whether a vhost back end holds its rings, none is asked for.
    """
    devices = await monitor.ask(VIRTIO, why_not=qmp.lacks(VIRTIO, monitor.qemu))
    paths = ringed_devices(devices)
    if (left := len(paths) - MOST_DEVICES) > 0:
        left_out.append(LeftOut(what="there are more virtio devices than were asked for", why=f"{left} were not"))
    for path in paths[:MOST_DEVICES]:
        status = await monitor.ask(VIRTIO_STATUS, {"path": path})
        numbers = queues(status)
        if (left := len(numbers) - MOST_QUEUES) > 0:
            left_out.append(LeftOut(what=f"{path} has more queues than were asked for", why=f"{left} were not"))
        for queue in numbers[:MOST_QUEUES]:
            await monitor.ask(QUEUE_STATUS, {"path": path, "queue": queue})


def _withheld(scene: Scene) -> Iterator[QmpExchange]:
    """Yield the questions of earlier steps that were not asked because the schema marks them."""
    qemu = session.qemu_of(session.earlier(scene, qmp.BEFORE[0]))
    for step in qmp.BEFORE:
        for exchange in session.earlier(scene, step):
            if exchange.outcome == "skipped" and stability.is_unstable(exchange.question, qemu):
                yield exchange


def _blocks(exchange: QmpExchange, qemu: commands.Qemu) -> bool:
    return exchange.question in commands.GUARDED or bool(commands.takes_lock(exchange.question, qemu))


def _refusal(scene: Scene, withheld: tuple[QmpExchange, ...]) -> str:
    """Return why those that can block are not asked, empty when they may be, or there are none."""
    qemu = session.qemu_of(session.earlier(scene, qmp.BEFORE[0]))
    if scene.options.ask_anyway or not any(_blocks(exchange, qemu) for exchange in withheld):
        return ""
    match guard.judge_monitor(scene):
        case guard.Unanswerable(reasons):
            return "; ".join(reasons)
        case guard.Permit():
            return ""


def ringed_devices(answer: Any) -> tuple[str, ...]:  # noqa: ANN401 - JSON
    """Return the QOM paths of the virtio disks and SCSI controllers in an answer to x-query-virtio."""
    paths = [device.get("path") for device in commands.named(answer) if device["name"] in RINGED]
    return tuple(path for path in paths if isinstance(path, str))


def queues(answer: Any) -> range:  # noqa: ANN401 - JSON
    """Return the numbers of a device's queues that can be asked for without harm, from its x-query-virtio-status.

    Where a vhost back end holds the rings, asking for a queue sends it GET_VRING_BASE, and that stops the ring.
    """
    match answer:
        case {"vhost-started": False, "num-vqs": int(number)}:
            return range(max(0, number))
        case _:
            return range(0)
