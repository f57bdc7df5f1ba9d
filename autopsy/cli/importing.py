"""The command `import`: what others took becomes a bundle with a diagnosis."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

FilesGiven = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE...",
        help="backtraces, a core, logs, a VM's configuration, a report of the host; several at once; - reads a pipe",
    ),
]
OutDirectory = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="where the bundle goes instead of the store")
]
VmName = Annotated[
    str, typer.Option("--name", metavar="VM", help="which VM (name, VMID or uuid), where the files tell of many")
]
SymbolFiles = Annotated[
    list[Path] | None, typer.Option("--debug-file", metavar="F", help="for a core: QEMU's debug file or its binary")
]
SymbolServer = Annotated[str, typer.Option("--debuginfod", metavar="URL", help="for a core: fetch symbols from here")]
JsonWanted = Annotated[bool, typer.Option("--json", help="print one JSON object")]


def import_evidence(
    files: FilesGiven,
    out: OutDirectory = None,
    name: VmName = "",
    debug_file: SymbolFiles = None,
    debuginfod: SymbolServer = "",
    json: JsonWanted = False,
) -> None:
    """Diagnose what others took: a pasted backtrace, a core, logs, a report of the host.

    The result is a bundle. What was not taken is told as unknown; no answer is surer than "consistent", but where the
    evidence itself proves it.
    """
    from autopsy.cli import summary
    from autopsy.cli.json_output import import_json
    from autopsy.cli.printing import say, show
    from autopsy.commands.import_evidence import ImportOptions
    from autopsy.commands.import_evidence import import_evidence as bring_in
    from autopsy.text import plain

    done = bring_in(
        ImportOptions(
            files=tuple(files),
            place=out,
            name=name,
            debug_files=tuple(debug_file or ()),
            debuginfod=debuginfod,
            words=tuple(sys.argv[1:]),
        )
    )
    if json:
        show(import_json(done))
        return
    for note in done.notes:
        say(plain(f"note: {note}"))
    for line in summary.verdict(done.diagnosis):
        show(line)
    for line in done.source:
        show(f"imported    {plain(line)}")
    for line in done.diagnosis.next_steps:
        show(summary.row("next", line))
    show(summary.row("report", str(done.report or "inside the bundle")))
    show(summary.row("bundle", f"{done.sealed.path} ({done.sealed.size / 1e6:.1f} MB, sha256 {done.sealed.sha256})"))
