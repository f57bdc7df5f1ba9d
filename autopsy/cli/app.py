"""Parses arguments, calls one function, chooses the exit code."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from shutil import get_terminal_size
from typing import Annotated

import typer

from autopsy.cli import completion
from autopsy.cli.bundles import BundlePath, examine, gdb, redact, replay, seal, verify
from autopsy.cli.capture_command import capture
from autopsy.cli.doctor import doctor
from autopsy.cli.fleet.app import fleet
from autopsy.cli.fleet.seeing import seen_before
from autopsy.cli.help_text import GroupedApp, dress
from autopsy.cli.importing import import_evidence
from autopsy.cli.printing import Json, say, show
from autopsy.cli.storing import list_captures, remove, show_capture
from autopsy.cli.watch_command import watch
from autopsy.errors import AutopsyError, ExitCode

app = typer.Typer(
    name="autopsy",
    cls=GroupedApp,
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Freeze the evidence of a wedged QEMU before anybody kills it, and say where its disk I/O is stuck.",
)

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})


def main() -> None:
    """Run the command line; an error that a person can act on is told in three short lines."""
    os.umask(0o077)  # nobody else is let into what we make, from the start
    try:
        sys.exit(app(standalone_mode=False) or ExitCode.DONE)  # typer returns the code of an Exit
    except AutopsyError as error:
        from autopsy.text import plain

        say(f"autopsy: {plain(str(error))}\n         {plain(error.remedy)}")
        sys.exit(error.exit_code)
    except OSError as error:
        from autopsy.files.private import NotPrivate
        from autopsy.text import plain

        if isinstance(error, NotPrivate):
            remedy = "give a folder that is yours, and that nobody else may write to"
            say(f"autopsy: {plain(str(error.filename))}: {error.strerror}\n         {remedy}")
            sys.exit(ExitCode.NOT_PERMITTED)
        if error.errno not in NO_ROOM:
            raise
        where = error.filename or "a temporary folder"
        say(f"autopsy: {where}: {error.strerror}\n         free some space, or set TMPDIR")
        sys.exit(ExitCode.NOT_STORED)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(ExitCode.INTERRUPTED)
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's own usage errors; its error class lives in click
            if not sys.argv[1:]:
                say(str(error.format_message()))  # the help itself
                sys.exit(ExitCode.USAGE)
            known = {command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands}
            command = next((f"{word} " for word in sys.argv[1:2] if word in known), "")
            say(f"autopsy: {error.format_message()}\n         autopsy {command}--help shows what can be said")
            sys.exit(ExitCode.USAGE)
        raise


def tell_version(wanted: bool) -> None:  # noqa: FBT001 - typer calls it with the option's value
    """Print the version and leave."""
    if wanted:
        from autopsy import __version__

        show(f"autopsy {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=tell_version, help="print the version and leave", is_eager=True)
    ] = False,
) -> None:
    """Hold the options that belong to no command."""


app.command()(capture)
app.command()(watch)


@app.command()
def analyze(bundle: BundlePath, json: Json = False) -> None:
    """Say where the I/O is stuck, from a stored bundle."""
    from autopsy.cli import summary
    from autopsy.cli.json_output import verdict_json
    from autopsy.report.store import diagnosis_of

    diagnosis = diagnosis_of(bundle)
    if json:
        show(verdict_json(diagnosis))
    else:
        for line in summary.verdict(diagnosis):
            show(line)


@app.command()
def report(
    bundle: BundlePath,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="instead of stdout")] = None,
    format: Annotated[  # noqa: A002 - the option's name is a contract
        str,
        typer.Option(
            "--format",
            metavar="html|md|bug|json|schema",
            help="bug: for QEMU's tracker, redacted; schema: of the json",
            show_default=True,
            autocompletion=completion.formats,
        ),
    ] = "html",
    seen: Annotated[
        str, typer.Option("--seen", metavar="PLACE", help="say how often an index has met the like; see fleet")
    ] = "",
) -> None:
    """Render a stored bundle's report."""
    from autopsy.report.render import render, store

    text = render(bundle, format, seen_before(bundle, seen) if seen else "")
    if output is None:
        show(text.rstrip("\n"))
    else:
        store(text, output)
        say(f"written to {output}")


app.command(name="import")(import_evidence)
app.command(name="list")(list_captures)
app.command(name="show")(show_capture)
app.command(name="rm")(remove)
app.command()(examine)
app.command()(gdb)
app.command()(verify)
app.command()(redact)
app.command()(seal)
app.command()(replay)
app.command()(doctor)
app.add_typer(fleet, name="fleet")


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="a bundle, or its folder", autocompletion=completion.bundles)],
    b: Annotated[
        Path, typer.Argument(metavar="B", help="another one, of the same VM or not", autocompletion=completion.bundles)
    ],
    exit_code: Annotated[bool, typer.Option("--exit-code", help="leave with 7 where anything differs")] = False,
    json: Json = False,
) -> None:
    """Say what changed between two captures."""
    from msgspec.json import encode
    from msgspec.json import format as indented

    from autopsy.diff.compare import between
    from autopsy.diff.text import lines
    from autopsy.text import plain

    difference = between(a, b)
    if json:
        show(indented(encode(difference), indent=2).decode())
    else:
        for line in lines(difference):
            show(plain(line))
    if exit_code and difference.differs:
        raise typer.Exit(ExitCode.MISMATCH)


@app.command()
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


@app.command()
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


dress(app)


if __name__ == "__main__":
    main()
