"""Parses arguments, calls one function, chooses the exit code."""

from __future__ import annotations

import errno
import gc
import os
import sys
from typing import Annotated

import typer

from autopsy.cli.help_text import GroupedApp
from autopsy.cli.printing import say, show
from autopsy.errors import AutopsyError, ExitCode

COMMANDS = {
    "capture": "autopsy.cli.capture_command:capture",
    "watch": "autopsy.cli.watch_command:watch",
    "analyze": "autopsy.cli.bundles:analyze",
    "report": "autopsy.cli.bundles:report",
    "import": "autopsy.cli.importing:import_evidence",
    "list": "autopsy.cli.storing:list_captures",
    "show": "autopsy.cli.storing:show_capture",
    "rm": "autopsy.cli.storing:remove",
    "examine": "autopsy.cli.bundles:examine",
    "gdb": "autopsy.cli.bundles:gdb",
    "verify": "autopsy.cli.bundles:verify",
    "redact": "autopsy.cli.bundles:redact",
    "seal": "autopsy.cli.bundles:seal",
    "replay": "autopsy.cli.bundles:replay",
    "doctor": "autopsy.cli.doctor:doctor",
    "diff": "autopsy.cli.bundles:diff",
    "ps": "autopsy.cli.here:ps",
    "drill": "autopsy.cli.here:drill",
    "fleet": "autopsy.cli.fleet.app:fleet",
}


class WholeApp(GroupedApp):
    """The whole command line."""

    places = COMMANDS


app = typer.Typer(
    name="autopsy",
    cls=WholeApp,
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Freeze the evidence of a wedged QEMU before anybody kills it, and say where its disk I/O is stuck.",
)

GARBAGE = 20_000  # objects between two looks for cycles: loading makes hundreds of thousands, and all of them stay
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})


def main() -> None:
    """Run the command line; an error that a person can act on is told in three short lines."""
    os.umask(0o077)  # nobody else is let into what we make, from the start
    gc.set_threshold(GARBAGE)
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
            command = next((f"{word} " for word in sys.argv[1:2] if word in COMMANDS), "")
            say(f"autopsy: {error.format_message()}\n         autopsy {command}--help shows what can be said")
            sys.exit(ExitCode.USAGE)
        raise
    finally:
        gc.freeze()  # it all ends with us: to look through it for cycles first took a twentieth of a capture


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


if __name__ == "__main__":
    main()
