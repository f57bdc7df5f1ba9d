"""`autopsy fleet`: the commands on many bundles, and what they have in common."""

from __future__ import annotations

import typer

from autopsy.cli.fleet.asking import diff, query
from autopsy.cli.fleet.diagnosing import diagnose
from autopsy.cli.fleet.pruning import prune
from autopsy.cli.fleet.sending import send
from autopsy.cli.help_text import dress

fleet = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Send bundles to one place, diagnose them all, and ask what they have in common.",
)
fleet.command()(send)
fleet.command()(diagnose)
fleet.command()(query)
fleet.command()(diff)
fleet.command()(prune)
dress(fleet)
