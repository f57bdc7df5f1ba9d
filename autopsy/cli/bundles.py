"""The commands on stored bundles: what they say, what is made of them, whether they are whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from autopsy.cli import completion
from autopsy.cli.printing import Json, say, show
from autopsy.errors import DamagedBundle, ExitCode

BundlePath = Annotated[
    Path,
    typer.Argument(metavar="BUNDLE", help="a .tar.zst bundle, or its folder", autocompletion=completion.bundles),
]
DebugFiles = Annotated[
    list[Path] | None, typer.Option("--debug-file", metavar="F", help="QEMU's debug file or unstripped binary")
]
OutDirectory = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="where the new bundle goes")]


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
    from autopsy.cli.fleet.seeing import seen_before
    from autopsy.report.render import render, store

    text = render(bundle, format, seen_before(bundle, seen) if seen else "")
    if output is None or output == Path("-"):  # as other programs write to stdout
        show(text.rstrip("\n"))
    else:
        store(text, output)
        say(f"written to {output}")


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


def examine(
    bundle: BundlePath,
    debug_file: DebugFiles = None,
    debuginfod: Annotated[str, typer.Option("--debuginfod", metavar="URL", help="fetch symbols from this server")] = "",
    out: OutDirectory = None,
    json: Json = False,
) -> None:
    """Examine a stored core again, with better symbols.

    The result is a new bundle beside the old one.
    """
    from autopsy.cli import summary
    from autopsy.cli.bundles_json import ExaminedAnswer, sealed_answer
    from autopsy.cli.json_output import as_text, verdict
    from autopsy.commands.examine import examine_bundle
    from autopsy.text import plain

    examined = examine_bundle(bundle, debug_files=tuple(debug_file or ()), debuginfod=debuginfod, place=out)
    if json:
        answer = sealed_answer(examined.sealed)
        show(
            as_text(
                ExaminedAnswer(
                    bundle=answer.bundle,
                    sha256=answer.sha256,
                    size=answer.size,
                    note=examined.note,
                    verdict=verdict(examined.diagnosis),
                )
            )
        )
        return
    say(plain(examined.note))
    for line in summary.verdict(examined.diagnosis):
        show(line)
    show(summary.row("bundle", f"{examined.sealed.path} (sha256 {examined.sealed.sha256})"))


def gdb(bundle: BundlePath, debug_file: DebugFiles = None) -> None:
    """Open an interactive gdb on a stored core.

    `info coroutines` lists the parked requests.
    """
    from autopsy.commands.examine import debug

    raise typer.Exit(debug(bundle, tuple(debug_file or ())))


def verify(
    bundle: BundlePath,
    allowed_signers: Annotated[
        Path | None, typer.Option("--allowed-signers", metavar="FILE", help="who may have signed it; see ssh-keygen(1)")
    ] = None,
    json: Json = False,
) -> None:
    """Compare every file of a bundle with what was sealed."""
    from autopsy.cli.bundles_json import VerifiedAnswer
    from autopsy.cli.json_output import as_text
    from autopsy.commands.signing import signer
    from autopsy.commands.verify import verify_boxed
    from autopsy.text import plain

    try:
        verified = verify_boxed(bundle)
        signed_by = plain(signer(bundle, allowed_signers, verified.sha256)) if allowed_signers is not None else ""
    except DamagedBundle as error:
        if not json:
            raise
        show(
            as_text(VerifiedAnswer(bundle=str(bundle), whole=False, files=0, sha256="", signed_by="", why=error.cause))
        )
        raise typer.Exit(error.exit_code) from error
    if json:
        show(
            as_text(
                VerifiedAnswer(
                    bundle=str(bundle),
                    whole=True,
                    files=verified.files,
                    sha256=verified.sha256,
                    signed_by=signed_by,
                    why="",
                )
            )
        )
        return
    if signed_by:
        show(f"{bundle}: signed by {signed_by}")
    show(f"{bundle}: whole, {verified.files} files" + (f", sha256 {verified.sha256}" if verified.sha256 else ""))


def redact(
    bundle: BundlePath,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="where the copy goes")] = None,
    json: Json = False,
) -> None:
    """Make a copy that can be shown to strangers.

    Without memory and secrets, with pseudonyms for names; the map of them stays with you.
    """
    from autopsy.cli.bundles_json import RedactedAnswer, sealed_answer
    from autopsy.cli.json_output import as_text
    from autopsy.commands.redact import redact as hide

    done = hide(bundle, output)
    say(f"the map of its pseudonyms is yours alone: {done.map}")
    if not done.same:
        say("its diagnosis is not the original's: a name in it may be one of QEMU's own words; say so beside it")
    say("read it before you show it: what nobody could know to be a secret is in it still")
    if json:
        answer = sealed_answer(done.sealed)
        show(
            as_text(
                RedactedAnswer(
                    bundle=answer.bundle, sha256=answer.sha256, size=answer.size, map=str(done.map), same=done.same
                )
            )
        )
        return
    show(f"{done.sealed.path} (sha256 {done.sealed.sha256})")


def seal(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a staging folder (.partial or .work)")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="where the bundle goes; as its capture was told if none")
    ] = None,
    json: Json = False,
) -> None:
    """Seal the evidence that a killed capture left behind."""
    from autopsy.cli.bundles_json import sealed_answer
    from autopsy.cli.json_output import as_text
    from autopsy.commands.seal import seal_leftover

    sealed = seal_leftover(folder, out)
    show(as_text(sealed_answer(sealed)) if json else f"{sealed.path} (sha256 {sealed.sha256})")


def replay(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="bundles, their folders, folders of cases")],
    update: Annotated[bool, typer.Option("--update", help="rewrite expected.json where the verdict changed")] = False,
    junit: Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="write JUnit XML, too")] = None,
    jobs: Annotated[int, typer.Option("--jobs", metavar="N", min=0, max=256, help="processes; 0: one a core")] = 0,
    json: Json = False,
) -> None:
    """Diagnose stored bundles again: old verdict against new.

    A case is a folder with a bundle and expected.json; a bundle alone is held against its own sealed diagnosis.
    """
    from autopsy.cli.bundles_json import replay_answer
    from autopsy.cli.json_output import as_text
    from autopsy.replay import cases
    from autopsy.replay import junit as xml
    from autopsy.replay import replay as stored
    from autopsy.text import plain

    bundles = cases.find_cases(tuple(paths))
    replayed = []
    for case in stored.replay(bundles, update=update, jobs=jobs or len(os.sched_getaffinity(0))):
        replayed.append(case)
        for line in () if json else stored.lines(case):
            show(plain(line))
    if junit is not None:
        xml.write_junit(junit, replayed)
    passed = all(case.passed for case in replayed)
    show(as_text(replay_answer(replayed)) if json else stored.summary(replayed))
    raise typer.Exit(ExitCode.DONE if passed else ExitCode.MISMATCH)
