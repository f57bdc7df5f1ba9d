"""`autopsy fleet diagnose`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autopsy.cli.printing import Json, say, show
from autopsy.errors import UsageError

Into = Annotated[str, typer.Option("--into", metavar="PLACE", help="where the index's parts go: a folder or a bucket")]
MOST_KEY = 64


def diagnose(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE...", help="bundles, folders of them, or s3://, gs://, az://BUCKET/…")
    ],
    into: Into,
    shard: Annotated[str, typer.Option("--shard", metavar="I/N", help="this run's share of them, from 1/N")] = "1/1",
    jobs: Annotated[int, typer.Option("--jobs", metavar="N", min=1, max=256, help="processes at once")] = 1,
    dask: Annotated[str, typer.Option("--dask", metavar="ADDRESS", help="the scheduler of a Dask cluster")] = "",
    chunk: Annotated[int, typer.Option("--chunk", metavar="N", min=1, max=5000, help="bundles in one part")] = 500,
    seconds: Annotated[float, typer.Option("--seconds", metavar="S", min=0.1, help="for one bundle")] = 30.0,
    memory: Annotated[int, typer.Option("--memory", metavar="MIB", min=64, help="for one bundle")] = 1024,
    host_key: Annotated[
        Path | None, typer.Option("--host-key", metavar="FILE", help="what hosts' pseudonyms are made with")
    ] = None,
    identity: Annotated[
        Path | None, typer.Option("--identity", metavar="FILE", help="age's, for encrypted bundles")
    ] = None,
    names: Annotated[bool, typer.Option("--names", help="keep the files' names, which may tell a VM's")] = False,
    again: Annotated[bool, typer.Option("--again", help="those, too, that could not be diagnosed before")] = False,
    json: Json = False,
) -> None:
    """Diagnose many bundles, and put a row for each into an index.

    What the index has already is left out, so a run that was cut off goes on.
    """
    from time import monotonic

    from autopsy.cli.fleet.extra import extra
    from autopsy.cli.fleet.fleet_json import FleetDiagnosed
    from autopsy.cli.json_output import as_text
    from autopsy.fleet.engine.dask_cluster import on_dask
    from autopsy.fleet.engine.diagnose import FleetRun, here, plan
    from autopsy.fleet.index.parts import this_analyzer
    from autopsy.fleet.places.sources import shard_of

    with extra():
        began = monotonic()
        run = FleetRun(
            sources=tuple(sources),
            into=into,
            shard=shard_of(shard),
            chunk=chunk,
            jobs=jobs,
            seconds=seconds,
            memory=memory << 20,
            host_key=_key(host_key) if host_key else b"",
            named=names,
            identity=str(identity.absolute()) if identity else "",
            again=again,
        )
        todo = plan(run)
        say(f"{todo.bundles} bundles to diagnose, {todo.known} are in the index")
        done = []
        for part in on_dask(dask, todo.chunks) if dask else here(todo.chunks):
            done.append(part)
            say(f"{sum(earlier.rows for earlier in done)} of {todo.bundles}: {part.part}")
    answer = FleetDiagnosed(
        into=into,
        analyzer=this_analyzer(),
        bundles=sum(part.rows for part in done),
        errors=sum(part.errors for part in done),
        known=todo.known,
        parts=tuple(part.part for part in done),
        seconds=round(monotonic() - began, 3),
        cpu_seconds=round(sum(part.cpu for part in done), 3),
    )
    if json:
        show(as_text(answer))
        return
    pace = f", {answer.bundles / answer.cpu_seconds:.0f} a second and core" if answer.cpu_seconds else ""
    show(f"{answer.bundles} bundles, {answer.errors} of them could not be diagnosed, {answer.known} were known{pace}")


def _key(file: Path) -> bytes:
    """Return what a key's file holds.

    Raises:
        UsageError: it cannot be read, or holds too much for a key.
    """
    from autopsy.files.plain import NotPlain, open_plain

    try:
        with open(open_plain(file), "rb") as stream:
            key = stream.read(MOST_KEY + 1).strip()
    except (OSError, NotPlain) as error:
        raise UsageError(str(file), f"cannot be read: {error}", remedy="give a file that you may read") from error
    if not 0 < len(key) <= MOST_KEY:
        raise UsageError(str(file), f"holds no key of 1 to {MOST_KEY} bytes", remedy="openssl rand -hex 16 > FILE")
    return key
