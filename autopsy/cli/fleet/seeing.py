"""What an index knows of a bundle, for its report."""

from __future__ import annotations

from pathlib import Path

SECONDS = 120.0


def seen_before(bundle: Path, place: str) -> str:
    """Return how often an index has met the like of a bundle, in words.

    The index is asked in a child: what it loads has threads, and whoever renders a report forks.

    Raises:
        UsageError: it cannot be asked.
    """
    from autopsy.cli.fleet.extra import extra
    from autopsy.errors import UsageError
    from autopsy.fleet.engine.chunk import diagnose_one
    from autopsy.linux.child import ChildFailed, ChildTimedOut, in_child

    def answer() -> bytes:
        from autopsy.fleet.index.seen import seen_words

        with extra():
            return seen_words(place, row).encode()

    row = diagnose_one(bundle)
    try:
        return in_child(answer, SECONDS).decode()
    except (ChildFailed, ChildTimedOut) as error:
        raise UsageError(place, f"cannot be asked: {error}", remedy="see whether it is an index") from error
