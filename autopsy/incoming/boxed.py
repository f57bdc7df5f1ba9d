"""Has files read in a process that can do nothing else, for each of their bytes may be a stranger's."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import msgspec

from autopsy.errors import UsageError
from autopsy.incoming.material import Material
from autopsy.incoming.reading import read_evidence
from autopsy.linux.confine import confined
from autopsy.linux.confine.confined import AnswerPipe, Died, TooSlow, WorkRaised
from autopsy.linux.confine.sandbox import Confined, Sandbox, python_tree

SECONDS = 600.0
MOST_CPU = 600
MEMORY = 3 << 30  # of address space; what is read at once is far less
REMEDY = "give it in parts; `autopsy import --help` tells what can be given"


def read_boxed(descriptors: Sequence[int], core_to: int, name: str) -> Material:
    """Return what the open files hold; a core of theirs is in the open file `core_to` afterwards.

    Raises:
        UsageError: the process that read them died, or took too long.
    """
    for module in (
        *("zlib", "bz2", "lzma", "zstandard", "tarfile", "zipfile"),
        *("html", "encodings.utf_8_sig", "encodings.utf_16", "encodings.cp437"),
    ):
        import_module(module)
    box = Sandbox(
        readable=python_tree(),
        keep=(*descriptors, core_to),
        memory=MEMORY,
        cpu_seconds=MOST_CPU,
    )

    def work(_: Confined, __: AnswerPipe) -> bytes:
        return msgspec.msgpack.encode(read_evidence(descriptors, core_to, name))

    try:
        answer = confined.run(work, box, seconds=SECONDS, hear=lambda _name, _data: b"")
        return msgspec.msgpack.decode(answer, type=Material)
    except TooSlow:
        raise UsageError("import", "the files took longer to read than they may", remedy=REMEDY) from None
    except (Died, WorkRaised, msgspec.DecodeError) as error:
        raise UsageError("import", f"the files could not be read: {error}", remedy=REMEDY) from None
