"""`autopsy fleet prune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autopsy.cli.printing import Json, say, show


def prune(
    place: Annotated[str, typer.Argument(metavar="PLACE", help="where bundles were sent to: a folder or a bucket")],
    index: Annotated[str, typer.Option("--index", metavar="PLACE", help="the index, where it is another place")] = "",
    policy: Annotated[
        Path | None, typer.Option("--policy", metavar="FILE", help="what is kept; see --show-policy")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would go and why, and remove nothing")] = False,
    show_policy: Annotated[bool, typer.Option("--show-policy", help="print the policy's file, and leave")] = False,
    json: Json = False,
) -> None:
    """Remove bundles that nobody asked for and that show nothing more than others.

    What is not in the index stays, and so does what a person captured.
    """
    from autopsy.cli.fleet.extra import extra
    from autopsy.cli.fleet.fleet_json import FateAnswer, FleetPruned
    from autopsy.cli.json_output import as_text
    from autopsy.fleet.index.local import some_parts
    from autopsy.fleet.retention.policy import DEFAULTS, read_policy
    from autopsy.text import plain

    rules = read_policy(policy or DEFAULTS)
    if show_policy:
        show((policy or DEFAULTS).read_text("utf-8").rstrip("\n"))
        return
    with extra():
        from autopsy.fleet.retention.prune import fates, remove

        judged = fates(place, some_parts(index or place), "", rules)
        if not dry_run:
            remove(place, judged)
    gone = [fate for fate in judged if not fate.keep]
    if json:
        answers = tuple(
            FateAnswer(key=fate.file.key, size=fate.file.size, keep=fate.keep, why=fate.why) for fate in judged
        )
        show(as_text(FleetPruned(place=place, dry_run=dry_run, bundles=answers)))
        return
    for fate in judged if dry_run else gone:
        word = "keep" if fate.keep else "would remove" if dry_run else "removed"
        show(plain(f"{word:<12} {fate.file.key}: {fate.why}"))
    say(f"{len(gone)} of {len(judged)} bundles, {sum(fate.file.size for fate in gone) / 1e6:.1f} MB")
