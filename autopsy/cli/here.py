"""The commands on what runs here: this host's VMs, and a wedged one to practise on."""

from __future__ import annotations

import sys
from pathlib import Path
from shutil import get_terminal_size
from typing import Annotated

import typer

from autopsy.cli import completion
from autopsy.cli.printing import Json, say, show


def ps(
    stuck: Annotated[bool, typer.Option("--stuck", help="only those that look stuck, at two looks")] = False,
    json: Json = False,
) -> None:
    """List this host's VMs without asking or stopping any.

    Those that show a sign of trouble stand first.
    """
    from dataclasses import replace

    from autopsy.cli import terminal
    from autopsy.cli.json_output import census_json
    from autopsy.target.ps import census
    from autopsy.target.stalls import stalled
    from autopsy.watch import state
    from autopsy.watch.listed import with_watch

    looks = stalled() if stuck else ()
    vms = tuple(replace(stall.vm, signs=(stall.words, *stall.vm.signs)) for stall in looks) if stuck else census()
    vms = with_watch(vms, state.last_round())
    if json:
        show(census_json(vms))
    elif stuck and not vms:
        show("no virtual machine of this host looks stuck")
    else:
        width = get_terminal_size().columns if sys.stdout.isatty() else 0
        for line in terminal.ps_lines(tuple(sorted(vms, key=lambda vm: not vm.signs)), width):
            show(line)


def drill(
    scenario: Annotated[
        str, typer.Argument(metavar="[SCENARIO]", help="see --list", autocompletion=completion.scenarios)
    ] = "throttle",
    list_them: Annotated[bool, typer.Option("--list", help="show the scenarios and what each needs")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="leave the wedged QEMU running and say how to end it")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="where the bundle goes instead of the store")
    ] = None,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="on a terminal: a line for each step")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="nothing but the result")] = False,
    json: Json = False,
) -> None:
    """Wedge a QEMU of our own, capture it, kill it."""
    from autopsy.cli import summary, terminal
    from autopsy.cli.json_output import answer
    from autopsy.commands.drill import listing, run, walk_through
    from autopsy.drill.stored import stored_drill
    from autopsy.store.place import expendable_path

    if list_them:
        for line in listing():
            show(line)
        return
    tell = (lambda _: None) if quiet else say
    if (stored := stored_drill(scenario)) is not None:
        from autopsy.cli.stored_json import show_json

        shown = walk_through(stored, out or expendable_path(), tell)
        for line in [show_json(shown)] if json else summary.stored(shown):
            show(line)
        return
    with terminal.watcher(verbose=verbose, quiet=quiet) as watcher:
        drilled = run(scenario, keep=keep, place=out or expendable_path(), watcher=watcher, say=tell)
    for line in terminal.story(drilled.ended):
        tell(line)
    for line in [answer(drilled.ended)] if json else summary.block(drilled.ended):
        show(line)
    tell(drilled.verdict_line)
    raise typer.Exit(drilled.exit_code)
