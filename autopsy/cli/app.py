"""Parses arguments, calls one function, chooses the exit code."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from shutil import get_terminal_size
from typing import Annotated

import typer

from autopsy.cli.capture_command import capture
from autopsy.cli.doctor import doctor
from autopsy.cli.importing import import_evidence
from autopsy.cli.printing import Json, say, show
from autopsy.cli.storing import list_captures, remove, show_capture
from autopsy.errors import AutopsyError, ExitCode

app = typer.Typer(
    name="autopsy",
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Freeze the evidence of a wedged QEMU before anybody kills it, and say where its disk I/O is stuck.",
    epilog="Exit codes: 0 done, 2 usage, 3 no such VM, 4 not permitted, "
    "5 nothing was killed (not stored, healthy, or needless), 6 killed but still there, "
    "7 verify or replay mismatch or a host that lacks something, 8 killed but not started again, "
    "9 the VM ended by itself, 130 interrupted, 1 a bug of autopsy's.",
)

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="a .tar.zst bundle, or its folder")]
DebugFiles = Annotated[
    list[Path] | None, typer.Option("--debug-file", metavar="F", help="QEMU's debug file or unstripped binary")
]


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
        if error.errno not in NO_ROOM:
            raise
        where = error.filename or "a temporary folder"
        say(f"autopsy: {where}: {error.strerror}\n         free some space, or set TMPDIR")
        sys.exit(ExitCode.NOT_STORED)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(ExitCode.INTERRUPTED)
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's own usage errors; its error class lives in click
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
app.command()(doctor)


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
            "--format", metavar="html|md|bug|json|schema", help="bug: for QEMU's tracker, redacted; schema: of the json"
        ),
    ] = "html",
) -> None:
    """Render a stored bundle's report."""
    from autopsy.report.render import render, store

    text = render(bundle, format)
    if output is None:
        show(text.rstrip("\n"))
    else:
        store(text, output)
        say(f"written to {output}")


app.command(name="import")(import_evidence)
app.command(name="list")(list_captures)
app.command(name="show")(show_capture)
app.command(name="rm")(remove)


@app.command()
def examine(
    bundle: BundlePath,
    debug_file: DebugFiles = None,
    debuginfod: Annotated[str, typer.Option("--debuginfod", metavar="URL", help="fetch symbols from this server")] = "",
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="where the new bundle goes")] = None,
) -> None:
    """Examine a stored core again, with better symbols.

    The result is a new bundle beside the old one.
    """
    from autopsy.cli import summary
    from autopsy.commands.examine import examine_bundle

    examined = examine_bundle(bundle, debug_files=tuple(debug_file or ()), debuginfod=debuginfod, place=out)
    from autopsy.text import plain

    say(plain(examined.note))
    for line in summary.verdict(examined.diagnosis):
        show(line)
    show(summary.row("bundle", f"{examined.sealed.path} (sha256 {examined.sealed.sha256})"))


@app.command()
def gdb(bundle: BundlePath, debug_file: DebugFiles = None) -> None:
    """Open an interactive gdb on a stored core.

    `info coroutines` lists the parked requests.
    """
    from autopsy.commands.examine import debug

    raise typer.Exit(debug(bundle, tuple(debug_file or ())))


@app.command()
def verify(
    bundle: BundlePath,
    allowed_signers: Annotated[
        Path | None, typer.Option("--allowed-signers", metavar="FILE", help="who may have signed it; see ssh-keygen(1)")
    ] = None,
) -> None:
    """Compare every file of a bundle with what was sealed."""
    from autopsy.commands.signing import signer
    from autopsy.commands.verify import verify_boxed
    from autopsy.text import plain

    verified = verify_boxed(bundle)
    if allowed_signers is not None:
        show(f"{bundle}: signed by {plain(signer(bundle, allowed_signers, verified.sha256))}")
    show(f"{bundle}: whole, {verified.files} files" + (f", sha256 {verified.sha256}" if verified.sha256 else ""))


@app.command()
def redact(
    bundle: BundlePath,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="where the copy goes")] = None,
) -> None:
    """Make a copy that can be shown to strangers.

    Without memory and secrets, with pseudonyms for names; the map of them stays with you.
    """
    from autopsy.commands.redact import redact as hide

    done = hide(bundle, output)
    say(f"the map of its pseudonyms is yours alone: {done.map}")
    if not done.same:
        say("its diagnosis is not the original's: a name in it may be one of QEMU's own words; say so beside it")
    say("read it before you show it: what nobody could know to be a secret is in it still")
    show(f"{done.sealed.path} (sha256 {done.sealed.sha256})")


@app.command()
def seal(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a staging folder (.partial or .work)")],
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="where the bundle goes")] = None,
) -> None:
    """Seal the evidence that a killed capture left behind."""
    from autopsy.commands.seal import seal_leftover

    sealed = seal_leftover(folder, out)
    show(f"{sealed.path} (sha256 {sealed.sha256})")


@app.command()
def replay(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="bundles, their folders, folders of cases")],
    update: Annotated[bool, typer.Option("--update", help="rewrite expected.json where the verdict changed")] = False,
    junit: Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="write JUnit XML, too")] = None,
    jobs: Annotated[int, typer.Option("--jobs", metavar="N", min=0, max=256, help="processes; 0: one a core")] = 0,
) -> None:
    """Diagnose stored bundles again: old verdict against new.

    A case is a folder with a bundle and expected.json; a bundle alone is held against its own sealed diagnosis.
    """
    from autopsy.replay import cases
    from autopsy.replay import junit as xml
    from autopsy.replay import replay as stored
    from autopsy.text import plain

    found = cases.find_cases(tuple(paths))
    replayed = []
    for case in stored.replay(found, update=update, jobs=jobs or len(os.sched_getaffinity(0))):
        replayed.append(case)
        for line in stored.lines(case):
            show(plain(line))
    if junit is not None:
        xml.write_junit(junit, replayed)
    show(stored.summary(replayed))
    raise typer.Exit(ExitCode.DONE if all(case.passed for case in replayed) else ExitCode.MISMATCH)


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="a bundle, or its folder")],
    b: Annotated[Path, typer.Argument(metavar="B", help="another one, of the same VM or not")],
    json: Json = False,
) -> None:
    """Say what changed between two captures."""
    from msgspec.json import encode
    from msgspec.json import format as indented

    from autopsy.diff.compare import between
    from autopsy.diff.text import lines
    from autopsy.text import plain

    found = between(a, b)
    if json:
        show(indented(encode(found), indent=2).decode())
    else:
        for line in lines(found):
            show(plain(line))


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

    looks = stalled() if stuck else ()
    found = tuple(replace(stall.vm, signs=(stall.words, *stall.vm.signs)) for stall in looks) if stuck else census()
    if json:
        show(census_json(found))
    elif stuck and not found:
        show("no virtual machine of this host looks stuck")
    else:
        width = get_terminal_size().columns if sys.stdout.isatty() else 0
        for line in terminal.ps_lines(tuple(sorted(found, key=lambda vm: not vm.signs)), width):
            show(line)


@app.command()
def drill(
    scenario: Annotated[str, typer.Argument(metavar="[SCENARIO]", help="see --list")] = "throttle",
    list_them: Annotated[bool, typer.Option("--list", help="show the scenarios and what each needs")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="leave the wedged QEMU running and say how to end it")] = False,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="where the bundle goes")] = None,
    json: Json = False,
) -> None:
    """Wedge a QEMU of our own, capture it, kill it."""
    from autopsy.cli import summary, terminal
    from autopsy.cli.json_output import answer
    from autopsy.commands.drill import listing, run
    from autopsy.store.place import expendable_path

    if list_them:
        for line in listing():
            show(line)
        return
    with terminal.watcher() as watcher:
        drilled = run(scenario, keep=keep, place=out or expendable_path(), watcher=watcher, say=say)
    for line in terminal.story(drilled.ended):
        say(line)
    for line in [answer(drilled.ended)] if json else summary.block(drilled.ended):
        show(line)
    say(drilled.verdict_line)
    raise typer.Exit(drilled.exit_code)


if __name__ == "__main__":
    main()
