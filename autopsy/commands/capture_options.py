"""What one capture is asked for."""

from __future__ import annotations

from pathlib import Path

from autopsy.bundle import layout
from autopsy.capture.step import Options
from autopsy.dataclass import dataclass
from autopsy.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureOptions:
    """What `autopsy capture` was asked for. `words` is the command line, for the manifest.

    Without places the bundle goes to the store. `one_of_many` says that others are captured beside it: who asked for
    them all tidies up. `asked_at` is the moment on CLOCK_MONOTONIC at which a person began to wait, None for now.
    """

    name: str
    options: Options
    places: tuple[Path, ...]
    words: tuple[str, ...]
    then_kill: bool = False
    then_start: bool = False
    dry_run: bool = False
    even_if_healthy: bool = False
    even_if_needless: bool = False
    require: tuple[str, ...] = ()
    sign: Path | None = None
    one_of_many: bool = False
    asked_at: float | None = None


def check(wish: CaptureOptions) -> None:
    """Refuse what cannot be meant, before anything is looked for.

    Raises:
        UsageError: there is no such step, or an option lacks the one that it belongs to.
    """
    unknown = [step for step in wish.require if step not in layout.STEPS]
    if unknown:
        raise UsageError(
            unknown[0], "there is no such step", remedy=f"--require takes one of {', '.join(layout.STEPS)}"
        )
    if not wish.then_kill and (wish.then_start or wish.dry_run):
        option = "--then-start" if wish.then_start else "--dry-run"
        raise UsageError(option, "there is no kill for it to follow", remedy="say --then-kill as well")
    if wish.sign is not None:
        from autopsy.commands.signing import can_sign  # noqa: PLC0415 - few sign, and it is large

        can_sign(wish.sign)
