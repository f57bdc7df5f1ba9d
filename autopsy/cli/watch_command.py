"""`autopsy watch`: notices stalls when they happen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autopsy.cli.printing import Json, say, show

if TYPE_CHECKING:
    from autopsy.watch.model import Round, WatchedVm


def watch(
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="instead of /etc/autopsy/watch.toml")
    ] = None,
    no_capture: Annotated[bool, typer.Option("--no-capture", help="only look and count, capture nothing")] = False,
    listen: Annotated[
        str, typer.Option("--listen", metavar="ADDR:PORT|unix:PATH", help="serve Prometheus metrics there")
    ] = "",
    textfile: Annotated[
        Path | None, typer.Option("--textfile", metavar="DIR", help="keep them in a file for node_exporter there")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="where bundles go", hidden=True)] = None,
    only: Annotated[
        list[int] | None, typer.Option("--only", metavar="PID", help="look at no other process", hidden=True)
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="look for a few seconds, and say what stands still")] = False,
    json: Json = False,
) -> None:
    """Notice VMs that stall, from outside, and capture them by itself.

    It stops no VM and kills none, and asks none but where the configuration says so.
    """
    from autopsy.cli.json_output import watch_json
    from autopsy.commands import watch as watching
    from autopsy.errors import UsageError
    from autopsy.text import plain
    from autopsy.watch import config as configuration
    from autopsy.watch.notify import ServiceNotifier
    from autopsy.watch.serving import outlets

    settings = configuration.load(config)
    if once:
        if listen or textfile:
            raise UsageError("--once", "nobody would be there to scrape", remedy="leave --listen and --textfile away")
        last = watching.once(settings, frozenset(only or ()))
        for line in [watch_json(last)] if json else map(plain, _lines(last)):
            show(line)
        return
    if json:
        raise UsageError("--json", "a watch without end has no result", remedy="say --once as well")
    teller, service, metrics = _Teller(), ServiceNotifier(), settings.metrics
    folder = textfile or (Path(metrics.textfile) if metrics.textfile else None)
    with outlets.opened(listen=listen or metrics.listen, textfile_folder=folder, anywhere=metrics.anywhere) as opened:
        publish = (teller.tell, opened.publish, service.round_ended)
        watching.watch_on(settings, publish, captures=not no_capture, say=say, out=out, only=frozenset(only or ()))
        service.stopping()


def _lines(last: Round) -> Iterator[str]:
    if not last.vms:
        yield "no virtual machine runs here"
    for vm in sorted(last.vms, key=lambda vm: vm.stalled is None):
        yield _line(vm)


def _line(vm: WatchedVm) -> str:
    words = [f"{vm.name} ({vm.target})", f"stalled ({vm.stalled.value})" if vm.stalled else vm.state.value]
    if vm.requests_in_flight is not None:
        words.append(f"{vm.requests_in_flight} requests in flight")
    if vm.oldest_unmoved_seconds >= 1:
        words.append(f"the oldest has not moved for {vm.oldest_unmoved_seconds:.0f} s")
    return ", ".join(words)


class _Teller:
    """Tells on stderr what has changed since the round before."""

    def __init__(self) -> None:
        self.stalled: dict[tuple[int, int], str] = {}
        self.silent: dict[tuple[int, int], bool] = {}
        self.captures: dict[str, int] = {}

    def tell(self, last: Round) -> None:
        """Tell of each VM that has begun or ceased to stall, and of each capture that has ended."""
        from autopsy.watch.listed import silence

        for vm in last.vms:
            key, now = (vm.pid, vm.start_ticks), vm.stalled.value if vm.stalled else ""
            if now != self.stalled.get(key, ""):
                say(f"{vm.name} ({vm.target}): {f'stalled: {now}' if now else 'moves again'}")
            self.stalled[key] = now
            if bool(vm.silent_disks) != self.silent.get(key, False):
                self.silent[key] = bool(vm.silent_disks)
                words = f"suspect: {silence(vm.silent_disks)}" if vm.silent_disks else "no disk is suspect any more"
                say(f"{vm.name} ({vm.target}): {words}")
            if (done := sum(vm.captures.values())) != self.captures.get(vm.name, 0):
                self.captures[vm.name] = done
                words = ", ".join(f"{count} {result.value}" for result, count in vm.captures.items())
                say(f"{vm.name} ({vm.target}): captures so far: {words}")
