"""Keeps the templates compiled beside themselves, as Python keeps modules: else each report compiles them anew."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from jinja2 import compiler
from jinja2.bccache import Bucket, FileSystemBytecodeCache


class CompiledTemplates(FileSystemBytecodeCache):
    """What templates became, in `__pycache__` of their folder; where nobody may write there, nothing is kept.

    It holds as long as a template, Jinja's compiler and the files that decide how it is used (`made_by`) are the same.
    """

    def __init__(self, folder: Path, made_by: Iterable[str]) -> None:
        super().__init__(str(folder / "__pycache__"), f"%s.{sys.implementation.cache_tag}.jinja")
        self._made_by = repr([_changed(file) for file in (compiler.__file__, *made_by)])

    def get_source_checksum(self, source: str) -> str:
        """Return what a kept template must have been made of."""
        return hashlib.sha256(f"{self._made_by}\n{source}".encode()).hexdigest()

    def load_bytecode(self, bucket: Bucket) -> None:
        """Take a template that is kept; one that was made of something else counts for nothing."""
        with suppress(OSError):
            super().load_bytecode(bucket)

    def dump_bytecode(self, bucket: Bucket) -> None:
        """Keep a template, whole or not at all."""
        if sys.dont_write_bytecode:
            return
        with suppress(OSError):
            Path(self.directory).mkdir(exist_ok=True)
            super().dump_bytecode(bucket)
            os.chmod(self._get_cache_filename(bucket), 0o644)  # as what Python keeps there


def _changed(file: str) -> int:
    """Return when a file was changed last; 0 where it is no file of its own."""
    try:
        return os.stat(file).st_mtime_ns
    except OSError:
        return 0
