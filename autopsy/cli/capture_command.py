"""`autopsy capture`: its options, its story and its result."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from autopsy.cli import completion
from autopsy.cli.printing import Json, say, show
from autopsy.errors import UsageError


def capture(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TARGET...",
            help="VMID, libvirt name, PID; or pve:102, libvirt:web1, pid:4242, qmp:/path",
            autocompletion=completion.vms,
        ),
    ] = None,
    stuck: Annotated[
        bool, typer.Option("--stuck", help="every VM of this host that looks stuck; kills only what is named besides")
    ] = False,
    then_kill: Annotated[
        bool, typer.Option("--then-kill", help="kill the VM once its evidence is sealed and read back")
    ] = False,
    then_start: Annotated[
        bool, typer.Option("--then-start", help="start it again after the kill, through the manager that owns it")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="with --then-kill: say what would be killed and how, and kill nothing")
    ] = False,
    even_if_healthy: Annotated[
        bool, typer.Option("--even-if-healthy", help="let --then-kill end a VM that is healthy or paused")
    ] = False,
    even_if_needless: Annotated[
        bool, typer.Option("--even-if-needless", help="let --then-kill end a VM that is proven to need no kill")
    ] = False,
    require: Annotated[
        list[str] | None,
        typer.Option(
            "--require",
            metavar="STEP",
            help="no kill without this step's evidence",
            autocompletion=completion.steps,
        ),
    ] = None,
    out: Annotated[
        list[Path] | None,
        typer.Option("--out", metavar="DIR", help="where the bundle goes instead of the store; may be repeated"),
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="0.5 s between the two snapshots instead of 5 s")] = False,
    gap: Annotated[
        float | None, typer.Option("--gap", metavar="S", min=0.1, help="seconds between snapshots (5)")
    ] = None,
    budget: Annotated[
        float | None, typer.Option("--budget", metavar="S", min=5, help="seconds for everything (60; of many, more)")
    ] = None,
    max_stop: Annotated[float, typer.Option("--max-stop", metavar="MS", min=1, help="longest stop of the VM")] = 50.0,
    no_core: Annotated[bool, typer.Option("--no-core", help="leave the core out of the bundle")] = False,
    sign: Annotated[
        Path | None, typer.Option("--sign", metavar="KEY", help="sign the bundle with this SSH key (BUNDLE.sig)")
    ] = None,
    no_binary: Annotated[bool, typer.Option("--no-binary", help="never store QEMU's binary in the bundle")] = False,
    ask_anyway: Annotated[
        bool, typer.Option("--ask-anyway", help="ask QMP even what may block (can make a half-dead VM a dead one)")
    ] = False,
    ask_unstable: Annotated[
        bool,
        typer.Option(
            "--ask-unstable",
            help="last of all, ask QMP what QEMU promises nothing about (x-…; such a question has ended a VM)",
        ),
    ] = False,
    live_gdb: Annotated[
        bool,
        typer.Option("--live-gdb", help="where nothing can be frozen (not x86-64), attach gdb: the VM stands still"),
    ] = False,
    no_bpf: Annotated[bool, typer.Option("--no-bpf", hidden=True)] = False,
    light: Annotated[bool, typer.Option("--light", hidden=True)] = False,  # for `autopsy watch`: a look at /proc alone
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="on a terminal: a line for each step")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="nothing but the result")] = False,
    json: Json = False,
) -> None:
    """Freeze a VM's evidence and say where it is stuck.

    Several are captured beside each other, under one budget; the exit code is the gravest of all.
    """
    from autopsy.capture.pace import age
    from autopsy.capture.step import Options
    from autopsy.cli import streams, summary, terminal
    from autopsy.cli.json_output import answer
    from autopsy.commands.capture import fulfil
    from autopsy.commands.capture_options import CaptureOptions
    from autopsy.text import plain

    names = tuple(targets or ())
    if not names and not stuck:
        raise UsageError("capture", "no TARGET is named", remedy="`autopsy ps` lists this host's VMs; or say --stuck")
    wish = CaptureOptions(
        name=names[0] if names else "",
        options=Options(
            fast=fast,
            gap=gap if gap is not None else (0.5 if fast else 5.0),
            budget=budget or Options().budget,
            core=not no_core,
            ask_anyway=ask_anyway,
            ask_unstable=ask_unstable,
            live_gdb=live_gdb,
            max_stop=max_stop / 1e3,
            binary=not no_binary,
            bpf=not no_bpf,
            light=light,
        ),
        places=tuple(out or ()),
        then_kill=then_kill,
        then_start=then_start,
        dry_run=dry_run,
        even_if_healthy=even_if_healthy,
        even_if_needless=even_if_needless,
        require=tuple(require or ()),
        sign=sign.absolute() if sign else None,
        words=tuple(sys.argv[1:]),
        asked_at=time.monotonic() - age(),
    )
    if stuck or len(names) > 1:
        from autopsy.cli.capture_several import capture_several
        from autopsy.commands.capture_many import Order

        order = Order(names=names, stuck=stuck, wish=wish, budget=budget)
        raise typer.Exit(capture_several(order, quiet=quiet, json=json))
    said: list[str] = []

    def tell(line: str) -> None:
        said.append(plain(line))
        if not quiet:
            say(said[-1])

    with streams.guarded() as listeners:
        with terminal.watcher(verbose=verbose, quiet=quiet) as watcher:
            ended = fulfil(wish, watcher, tell)
        for line in () if quiet else terminal.story(ended):
            if line not in said:
                say(line)
        if sys.stderr.isatty() and not quiet:
            say("")
        for line in [answer(ended)] if json else summary.block(ended):
            show(line)
        if listeners.out and listeners.out.lost:
            say(f"note: stdout: {listeners.out.lost}: the bundle is {ended.captured.sealed.path}")
    raise typer.Exit(ended.exit_code)
