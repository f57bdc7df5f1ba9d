"""Whose a working folder is: a capture's from its first file on, and then of one alone who seals what was left."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from autopsy.capture.staging import leftovers, staging
from autopsy.commands import seal as sealing
from autopsy.errors import UsageError
from autopsy.files import private


def test_a_capture_that_begins_is_at_no_moment_taken_for_a_dead_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever looks while README.txt is laid finds it locked, or none in a folder that is young."""
    seen: list[bool] = []

    def watched(call: Callable[..., None]) -> Callable[..., None]:
        def look(*words: object, **more: object) -> None:
            seen.append(leftovers.at_work(made.work))
            call(*words, **more)
            seen.append(leftovers.at_work(made.work))

        return look

    made = staging.prepare("autopsy-vm-1", (tmp_path,))
    try:
        with monkeypatch.context() as patched:
            patched.setattr(os, "rename", watched(os.rename))
            patched.setattr(fcntl, "lockf", watched(fcntl.lockf))
            made.claim(b"read me")
        assert seen == [True] * 4
        assert (made.work / "README.txt").read_bytes() == b"read me"
    finally:
        made.clear()


def test_what_a_dead_capture_left_is_sealed_by_one_alone(tmp_path: Path) -> None:
    folder = tmp_path / "autopsy-vm-1.0.work"
    os.close(private.make(folder))
    private.store(folder / "README.txt", b"read me")
    first = leftovers.claim(folder)
    assert first is not None
    assert (folder / "README.txt").read_bytes() == b"read me"  # as sealing does
    assert leftovers.claim(folder) is None
    assert sealing._rescue(folder) == f"{folder} is sealed by another capture"
    assert folder.exists()
    os.close(first)


def test_two_that_look_at_once_do_not_take_each_other_for_a_capture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "autopsy-vm-1.0.work"
    os.close(private.make(folder))
    private.store(folder / "README.txt", b"read me")
    ask = fcntl.fcntl
    others: list[bool] = []

    def asked_twice(descriptor: int, command: int, argument: bytes = b"") -> bytes | int:
        answer = ask(descriptor, command, argument)
        if command == fcntl.F_OFD_GETLK:
            with monkeypatch.context() as patched:
                patched.setattr(fcntl, "fcntl", ask)
                others.append(leftovers.at_work(folder))
        return answer

    monkeypatch.setattr(fcntl, "fcntl", asked_twice)
    assert not leftovers._is_filled(folder)
    assert others == [False]


def test_a_folder_that_does_not_let_itself_be_looked_at_is_neither_sealed_nor_said_to_be_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A FIFO stands in for a file system that hangs: to open it is to sleep."""
    monkeypatch.setattr(leftovers, "ASLEEP_SECONDS", 0.2)
    folder = tmp_path / "autopsy-vm-1.0.work"
    os.close(private.make(folder))
    os.mkfifo(folder / "README.txt", 0o600)
    with pytest.raises(UsageError, match=r"whether its capture is still at work cannot be told: no answer in 0\.2 s"):
        sealing.seal_leftover(folder, tmp_path)
    monkeypatch.setattr(leftovers, "memory_places", lambda: (tmp_path,))
    assert leftovers.leftovers() == ()
