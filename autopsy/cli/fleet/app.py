"""`autopsy fleet`: the commands on many bundles, and what they have in common."""

from __future__ import annotations

import typer

from autopsy.cli.help_text import GroupedCommand
from autopsy.cli.on_demand import GroupOnDemand

COMMANDS = {
    "send": "autopsy.cli.fleet.sending:send",
    "diagnose": "autopsy.cli.fleet.diagnosing:diagnose",
    "query": "autopsy.cli.fleet.asking:query",
    "diff": "autopsy.cli.fleet.asking:diff",
    "prune": "autopsy.cli.fleet.pruning:prune",
}


class Fleet(GroupOnDemand):
    """The commands of `autopsy fleet`."""

    kind = GroupedCommand
    places = COMMANDS


fleet = typer.Typer(
    cls=Fleet,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Send bundles to one place, diagnose them all, and ask what they have in common.",
)
