"""How we let go of a monitor: what QEMU still has to say meets a reader, and leaves no signal pending in it."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path

from autopsy.capture.qmp.client import CLOSE_SECONDS, HANG_UP_SECONDS, NoAnswer, SocketMonitor
from support import fake_qmp

LATE = {"status": "running"}


async def asked_in_vain(path: Path, pid: int) -> float:
    """Ask what is not answered in time and hang up; return for how many seconds that took."""
    monitor = SocketMonitor(str(path), str(path), pid)
    await monitor.greet(5)
    await monitor.ask("qmp_capabilities", {}, 5)
    assert isinstance(await monitor.ask("query-status", {}, 0.1), NoAnswer)
    began = time.monotonic()
    await monitor.close()
    return time.monotonic() - began


def test_an_answer_that_comes_too_late_is_taken_all_the_same(short: Path) -> None:
    taken = threading.Event()

    def script(client: fake_qmp.Client) -> None:
        client.greet()
        question = client.hear()
        try:
            client.hear()
        except ConnectionResetError:  # we ask no more
            client.answer(question, LATE)
            client.answer(question, LATE)
            taken.set()

    with fake_qmp.server(short / "qmp", script):
        took = asyncio.run(asked_in_vain(short / "qmp", os.getpid()))
    assert taken.wait(5)
    assert took < HANG_UP_SECONDS + CLOSE_SECONDS


def test_who_never_hangs_up_is_left_for_all_that(short: Path) -> None:
    def script(client: fake_qmp.Client) -> None:
        client.greet()
        client.wait()

    with fake_qmp.server(short / "qmp", script):
        assert asyncio.run(asked_in_vain(short / "qmp", os.getpid())) >= HANG_UP_SECONDS
