"""Verifies a bundle in a process that can do nothing else: to unpack it is to read a stranger's bytes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from autopsy.bundle.archive import open_archive
from autopsy.bundle.verify import Verified, compare, read_folder, verify_archive
from autopsy.errors import DamagedBundle
from autopsy.report.boxed import SECONDS, in_box


def verify_boxed(path: Path) -> Verified:
    """Compare every file of a bundle with what was sealed.

    Raises:
        UsageError: there is nothing at that path.
        DamagedBundle: a file is missing, added, or differs, or it was the end of the process that read it.
    """
    if path.is_dir():
        contents = read_folder(path)
        return _in_box(path, lambda: compare(path, contents))
    descriptor = open_archive(path)
    try:
        return _in_box(path, lambda: verify_archive(path, descriptor), keep=(descriptor,))
    finally:
        os.close(descriptor)


def _in_box(path: Path, work: Callable[[], Verified], keep: tuple[int, ...] = ()) -> Verified:
    answer = in_box(lambda _box, _line: msgspec.json.encode(work()), source=str(path), seconds=SECONDS, keep=keep)
    try:
        return msgspec.json.decode(answer, type=Verified)
    except msgspec.DecodeError as error:
        raise DamagedBundle(str(path), f"what read it gave no answer: {error}", remedy="do not trust it") from error
