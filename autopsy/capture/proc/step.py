"""The steps that look at the process from outside once more: its threads, its descriptors, its AIO."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from autopsy.bundle import layout
from autopsy.capture.host import block_devices
from autopsy.capture.proc import descriptors, images, sockets, thread_waits, threads
from autopsy.capture.proc.aio import collect_aio as collect_rings
from autopsy.capture.reading.procfs import ProcDirectory, ProcessEnded, held
from autopsy.capture.reading.reader import ReadFailures
from autopsy.capture.step import Deadline, Failed, Outcome, Scene

AGAIN_SECONDS = 5.0  # of the second snapshot, after which memory and monitor are still to come


def stacks(scene: Scene) -> Outcome:
    """Take every thread's state and kernel stack again: the same files as the witness took."""

    def look(process: ProcDirectory, trouble: ReadFailures) -> None:
        threads.store_tasks(scene, process, trouble)

    return _looked(scene, look)


def fds(scene: Scene) -> Outcome:
    """Take the descriptor table again, the sockets and whoever holds their other ends, and where images' names lead."""

    def look(process: ProcDirectory, trouble: ReadFailures) -> None:
        table = descriptors.store_descriptors(scene, process, trouble)
        sockets.collect_sockets(scene, process, table, trouble)
        images.collect_images(scene, process, table, trouble)

    return _looked(scene, look)


def aio(scene: Scene) -> Outcome:
    """Take the completion rings of Linux AIO and io_uring."""

    def look(process: ProcDirectory, trouble: ReadFailures) -> None:
        collect_rings(scene, process, descriptors.links(process), scene.earlier(layout.WITNESS, layout.MAPS), trouble)

    return _looked(scene, look)


def tasks_again(scene: Scene) -> Outcome:
    """Take the threads a second time, with what they sleep on."""
    scene = _for_a_while(scene)

    def look(process: ProcDirectory, trouble: ReadFailures) -> None:
        tasks = threads.store_tasks(scene, process, trouble)
        thread_waits.collect_thread_waits(scene, process, tasks, trouble)

    return _looked(scene, look)


def fds_again(scene: Scene) -> Outcome:
    """Take what else moves a second time: descriptors, rings, block devices, sockets and who holds their other ends."""
    scene = _for_a_while(scene)

    def look(process: ProcDirectory, trouble: ReadFailures) -> None:
        table = descriptors.store_descriptors(scene, process, trouble)
        collect_rings(scene, process, table, scene.earlier(layout.WITNESS, layout.MAPS), trouble)
        block_devices.collect_again(scene, process, table, trouble)
        sockets.collect_sockets(scene, process, table, trouble)

    return _looked(scene, look)


def _for_a_while(scene: Scene) -> Scene:
    return replace(scene, deadline=Deadline(min(AGAIN_SECONDS, scene.deadline.left())))


def _looked(scene: Scene, look: Callable[[ProcDirectory, ReadFailures], None]) -> Outcome:
    trouble = ReadFailures()
    try:
        with held(scene.target) as process, trouble.one_reader():
            look(process, trouble)
    except ProcessEnded as error:
        return Failed(str(error))
    return trouble.outcome()
