"""Keeps the templates compiled beside themselves, as Python keeps modules: else each report compiles them anew."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from jinja2 import compiler
from jinja2.bccache import Bucket, BytecodeCache


class CompiledTemplates(BytecodeCache):
    """What templates became, in `__pycache__` of their folder; where nobody may write there, nothing is kept.

    It holds as long as a template, Jinja's compiler and the files that decide how it is used (`made_by`) are the same.
    """

    def __init__(self, folder: Path, made_by: Iterable[str]) -> None:
        self._folder = folder / "__pycache__"
        self._made_by = repr([_changed(file) for file in (compiler.__file__, *made_by)])

    def get_source_checksum(self, source: str) -> str:
        """Return what a kept template must have been made of."""
        return hashlib.sha256(f"{self._made_by}\n{source}".encode()).hexdigest()

    def load_bytecode(self, bucket: Bucket) -> None:
        """Take a template that is kept; one that was made of something else counts for nothing."""
        with suppress(OSError), open(self._place(bucket), "rb") as stream:
            bucket.load_bytecode(stream)

    def dump_bytecode(self, bucket: Bucket) -> None:
        """Keep a template, whole or not at all."""
        if sys.dont_write_bytecode:
            return
        place = self._place(bucket)
        half = place.with_name(f"{place.name}.{os.getpid()}")
        with suppress(OSError):
            self._folder.mkdir(exist_ok=True)
            half.write_bytes(bucket.bytecode_to_string())
            half.chmod(0o644)  # as what Python keeps there
            half.replace(place)

    def _place(self, bucket: Bucket) -> Path:
        return self._folder / f"{bucket.key}.{sys.implementation.cache_tag}.jinja"


def _changed(file: str) -> int:
    """Return when a file was changed last; 0 where it is no file of its own."""
    try:
        return os.stat(file).st_mtime_ns
    except OSError:
        return 0
