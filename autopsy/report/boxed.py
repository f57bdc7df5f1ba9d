"""Reads bundles in a process that can do nothing else: what is in them may be a stranger's, archive and all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import msgspec

from autopsy.bundle.reader import Bundle, OpenedBundle, hold
from autopsy.errors import AutopsyError, DamagedBundle, NewerBundle, UsageError
from autopsy.linux.confine import confined
from autopsy.linux.confine.confined import AnswerPipe, Died, TooSlow, WorkRaised
from autopsy.linux.confine.sandbox import Confined, Sandbox, python_tree
from autopsy.report.html import environment
from autopsy.resources import texts

SECONDS = 300.0  # decompressing 4 GiB of cores takes some 10
MEMORY = 4 << 30
KNOWN: tuple[type[AutopsyError], ...] = (UsageError, DamagedBundle, NewerBundle)


def read_boxed(paths: Sequence[Path], work: Callable[[tuple[Bundle, ...]], bytes]) -> bytes:
    """Open these bundles in the sandbox and return what `work` makes of them.

    Raises:
        AutopsyError: as hold(), the opening and `work` raise it; DamagedBundle, where it was the end of the process.
    """
    held: list[OpenedBundle] = []
    try:
        held.extend(map(hold, paths))
        return in_box(
            lambda _box, _line: work(tuple(bundle.read() for bundle in held)),
            source=", ".join(map(str, paths)),
            seconds=SECONDS,
            keep=tuple(bundle.descriptor for bundle in held if bundle.descriptor is not None),
        )
    finally:
        for bundle in held:
            if bundle.descriptor is not None:
                os.close(bundle.descriptor)


def in_box(
    work: Callable[[Confined, AnswerPipe], bytes],
    *,
    source: str,
    seconds: float,
    keep: tuple[int, ...] = (),
    hear: Callable[[str, bytes], bytes] = lambda _name, _data: b"",
    most: int = confined.MOST_ALTOGETHER,
) -> bytes:
    """Run `work` in the sandbox, without a place to write; `source` is what it reads.

    Raises:
        AutopsyError: as `work` raises it; DamagedBundle, where anything else became of the process.
    """
    with begun_in_box(work, source=source, seconds=seconds, keep=keep) as answer:
        return answer(hear, most)


@contextmanager
def begun_in_box(
    work: Callable[[Confined, AnswerPipe], bytes], *, source: str, seconds: float, keep: tuple[int, ...] = ()
) -> Iterator[Callable[..., bytes]]:
    """Have `work` run in the sandbox meanwhile; what is yielded waits for its answer, and raises as `in_box` does."""
    load()
    box = Sandbox(readable=python_tree(), keep=keep, memory=MEMORY)

    def waited(hear: Callable[[str, bytes], bytes] = _unheard, most: int = confined.MOST_ALTOGETHER) -> bytes:
        try:
            return answer(seconds, hear, most)
        except TooSlow:
            raise DamagedBundle(source, f"could not be read within {seconds:.0f} s", remedy="do not trust it") from None
        except Died as error:
            raise DamagedBundle(source, f"what read it ended: {error}", remedy="do not trust it") from None
        except WorkRaised as error:
            raise _as_raised(source, error) from None

    with confined.begun(work, box, words=_in_words) as answer:
        yield waited


def _unheard(_name: str, _data: bytes) -> bytes:
    return b""


def load() -> None:
    """Load what is loaded late: where our own files lie below root's home, nobody else could read them any more."""
    for name in ("zlib", "lzma", "bz2", "html", "encodings.unicode_escape", "autopsy.report.store"):
        import_module(name)
    for folder in ("templates", "runbooks"):
        texts(folder)
    environment()


def _in_words(error: BaseException) -> bytes:
    if isinstance(error, AutopsyError):
        return msgspec.json.encode((error.thing, error.cause, error.remedy))
    return f"{type(error).__name__}: {error}".encode("utf-8", "replace")


def _as_raised(source: str, error: WorkRaised) -> AutopsyError:
    for kind in KNOWN:
        if kind.__name__ == error.kind:
            try:
                named, cause, remedy = msgspec.json.decode(error.data, type=tuple[str, str, str])
            except msgspec.DecodeError:
                break
            return kind(named, cause, remedy=remedy)
    return AutopsyError(source, error.data[:1000].decode("utf-8", "replace"), remedy="this is a bug: please tell us")
