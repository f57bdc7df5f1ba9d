"""`autopsy list`, `show` and `rm`: the store of captures."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated

import typer

from autopsy.cli import completion
from autopsy.cli.printing import Json, say, show
from autopsy.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from autopsy.commands.stored import ShownBundle
    from autopsy.store.removal import Room

MOST_HEADLINE = 200


def list_captures(json: Json = False) -> None:
    """List what is stored, the newest last."""
    from autopsy.cli.stored_json import list_json
    from autopsy.commands.stored import listed
    from autopsy.store.entries import entries
    from autopsy.store.place import store_path
    from autopsy.store.removal import room

    store = store_path()
    captures = listed()
    known = room(entries(), store) if store.is_dir() else None
    if json:
        show(list_json(str(store), known, captures))
        return
    if known is None or not captures:
        show(f"nothing is stored in {store}")
        return
    for line in _table(captures, known, store):
        show(line)


def show_capture(
    capture: Annotated[
        str,
        typer.Argument(
            metavar="[NAME|BUNDLE|last]",
            help="a stored capture, a VM's name, or a path",
            autocompletion=completion.stored_or_bundles,
        ),
    ] = "last",
    open_it: Annotated[bool, typer.Option("--open", help="open the report in the browser of this desktop")] = False,
    json: Json = False,
) -> None:
    """Say what a stored capture found, and where its report is."""
    from autopsy.cli import summary
    from autopsy.cli.stored_json import show_json
    from autopsy.commands.open_report import open_report
    from autopsy.commands.stored import named

    shown = named(capture)
    for line in [show_json(shown)] if json else summary.stored(shown):
        show(line)
    if open_it:
        if shown.report is None:
            raise UsageError(
                shown.bundle.name,
                "no report stands beside it",
                remedy=f"autopsy report {shown.bundle} -o report.html",
            )
        open_report(shown.report)


def remove(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="captures, as list names them", autocompletion=completion.captures),
    ] = None,
    older: Annotated[
        str,
        typer.Option(
            "--older",
            metavar="AGE",
            help="all that are older, such as 90min, 12h, 30d, 8w",
            autocompletion=completion.ages,
        ),
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be removed, and remove nothing")] = False,
    json: Json = False,
) -> None:
    """Remove captures from the store: those that are named, or older than an age."""
    from autopsy.cli.stored_json import removed_json
    from autopsy.store.choose import chosen
    from autopsy.store.entries import entries
    from autopsy.store.removal import remove as forget
    from autopsy.store.removal import seconds_of

    if not names and not older:
        raise UsageError("rm", "it is not said what goes", remedy="say --older AGE, or names that `autopsy list` shows")
    stored = entries()
    gone = {entry.bundle: entry for name in names or () for entry in (chosen(name, stored),)}
    if older:
        before = time.time() - seconds_of(older)
        gone |= {entry.bundle: entry for entry in stored if entry.when < before}
    these = tuple(gone.values())
    if not dry_run:
        forget(these)
    if json:
        show(removed_json(these, dry_run=dry_run))
        return
    for entry in these:
        show(f"{'would remove' if dry_run else 'removed'} {entry.bundle}")
    say(f"{len(these)} captures, {sum(entry.size for entry in these) / 1e6:.1f} MB")
    raise typer.Exit(ExitCode.DONE)


def _table(bundles: tuple[ShownBundle, ...], room: Room, store: Path) -> Iterator[str]:
    """Yield the captures, a line each, and at the end what they take beside what they may."""
    from autopsy.cli import summary
    from autopsy.text import plain

    width = get_terminal_size().columns if sys.stdout.isatty() else 0
    names = [shown.entry.name.removeprefix("autopsy-") if shown.entry else shown.bundle.name for shown in bundles]
    longest = max(map(len, names))
    for name, shown in zip(names, bundles, strict=True):
        head = plain(f"{name:<{longest}}  {shown.size / 1e6:>6.1f} MB  {_fate(shown):<10}")
        words = plain(summary.in_short(shown.words))
        if not width or len(head) + 1 + len(words) <= width:
            yield f"{head} {words}"
        else:  # the verdict is what is looked for: it has a line of its own
            yield head.rstrip()
            yield f"  {words}" if len(words) + 2 <= width else f"  {words[: width - 3]}…"
    yield f"{len(bundles)} captures in {store}: {room.used / 1e6:.1f} MB of at most {room.most / 1e6:.0f}"


def _fate(stored: ShownBundle) -> str:
    if stored.kill is not None:
        return "killed" if stored.kill.gone else "not killed"
    return "drill" if stored.entry is not None and stored.entry.expendable else ""
