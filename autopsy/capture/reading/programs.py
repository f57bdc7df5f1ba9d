"""Runs another program inside a reader, with a bound on its time and its output."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import time
from collections.abc import Sequence

from autopsy.capture.reading.reader import Truncated, Unreadable
from autopsy.linux import environment
from autopsy.linux.tasks.forking import die_with_parent

MOST_BYTES = 4 << 20
END_SECONDS = 0.2
NOGROUP = 65534
ORDINARY_UMASK = 0o022  # ours closes what we make: a VM that is started again must not inherit it
PASSED_ON = ("TZ",)  # the journal's times are told in the host's zone


def output(
    words: Sequence[str], *, seconds: float, most: int = MOST_BYTES, user: int | None = None
) -> bytes | Truncated:
    """Return what a program prints; what it had printed when its time or its room was up counts too.

    Call it from a `Read.take` whose own `seconds` are longer: the program is in the reader's process group, and ends
    with it. With `user` it runs with that user's rights, and none of any group's.

    Raises:
        Unreadable: it is not installed, or it failed and printed nothing; its own words are in the message.
    """
    path = environment.path()
    binary = shutil.which(words[0], path=path)
    if binary is None:
        raise Unreadable(f"{words[0]} is not installed")
    started = subprocess.Popen(
        [binary, *words[1:]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment.ours(PATH=path, LC_ALL="C", **_passed_on()),
        cwd="/",
        user=user,
        group=None if user is None else NOGROUP,
        extra_groups=None if user is None else (),
        umask=ORDINARY_UMASK,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - a reader has one thread
    )
    printed, errors, why = _gather(started, time.monotonic() + seconds, most)
    why += _end(started)
    if why:
        return Truncated(printed, why)
    if started.returncode and not printed:
        raise Unreadable(errors.decode("utf-8", "replace").strip().partition("\n")[0] or f"exit {started.returncode}")
    return printed


def _passed_on() -> dict[str, str]:
    return {name: os.environ[name] for name in PASSED_ON if name in os.environ}


def _gather(started: subprocess.Popen[bytes], give_up: float, most: int) -> tuple[bytes, bytes, str]:
    """Read both streams to their ends; return what came, and why it is not all."""
    assert started.stdout is not None  # noqa: S101 - they are pipes: tells the type checker
    assert started.stderr is not None  # noqa: S101 - likewise
    out, errors = started.stdout.fileno(), started.stderr.fileno()
    streams = {out: bytearray(), errors: bytearray()}
    poller = select.poll()
    for stream in streams:
        poller.register(stream, select.POLLIN)
    open_streams = set(streams)
    while open_streams:
        left = give_up - time.monotonic()
        if left <= 0:
            return bytes(streams[out]), bytes(streams[errors]), "cut: it was still running when its time was up"
        for stream, _ in poller.poll(left * 1000):
            part = os.read(stream, 1 << 16)
            if not part:
                poller.unregister(stream)
                open_streams.discard(stream)
            streams[stream] += part
            if len(streams[stream]) > most:
                return bytes(streams[out][:most]), bytes(streams[errors][:most]), f"cut after {most} bytes"
    return bytes(streams[out]), bytes(streams[errors]), ""


def _end(started: subprocess.Popen[bytes]) -> str:
    """Wait for the program, or kill it; return why it is still there."""
    if started.stdout:
        started.stdout.close()
    if started.stderr:
        started.stderr.close()
    for last_try in (False, True):
        try:
            started.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            started.kill()
            if last_try:
                return f"; {started.pid} does not end: it sleeps in the kernel"
        else:
            return ""
    return ""
