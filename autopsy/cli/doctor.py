"""`autopsy doctor`: shows what this host lets a capture do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from autopsy.cli.printing import Json, show
from autopsy.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from autopsy.doctor.checks import Check, CheckedHost

MARKS = {"ok": "ok", "note": "note", "lacks": "LACKS"}


def doctor(json: Json = False) -> None:
    """Try what this host lets a capture do.

    On a process of our own; no VM is asked or stopped. Exit code 0: a capture would leave nothing out; 7: it would.
    """
    from autopsy.doctor.examine_host import examine_host

    examined = examine_host()
    if json:
        show(doctor_json(examined))
    else:
        for line in lines(examined):
            show(line)
    raise typer.Exit(ExitCode.DONE if examined.whole else ExitCode.MISMATCH)


def doctor_json(examined: CheckedHost) -> str:
    """Return one JSON object: `whole`, `host` and `vms`, each check with `name`, `result`, `found`, `remedy`."""
    import msgspec

    whole = {"whole": examined.whole, "host": examined.host, "vms": examined.vms}
    return msgspec.json.format(msgspec.json.encode(whole), indent=2).decode()


def lines(examined: CheckedHost) -> Iterator[str]:
    """Yield the table: what was tried, what came of it, and what to do below it."""
    vms = examined.vms
    width = max(len(check.name) for check in (*examined.host, *(check for vm in vms for check in vm.checks)))
    yield from _rows(examined.host, width, {})
    first: dict[str, str] = {}
    for vm in vms:
        from autopsy.text import plain

        yield ""
        yield plain(f"{vm.target}  {vm.name} (process {vm.pid})")
        yield from _rows(vm.checks, width, first)
        first |= {check.remedy: vm.target for check in vm.checks if check.remedy not in first}
    yield ""
    yield "A capture would be whole." if examined.whole else "A capture would leave out what is marked LACKS."


def _rows(checks: Iterable[Check], width: int, seen: Mapping[str, str]) -> Iterator[str]:
    """Yield the rows of some checks; a remedy that was told of another VM is not told again."""
    from autopsy.text import plain

    for check in checks:
        yield plain(f"{MARKS[check.result.value]:<5}  {check.name:<{width}}  {check.found}")
        if check.remedy:
            remedy = f"as for {seen[check.remedy]}" if check.remedy in seen else check.remedy
            yield plain(f"{'':<5}  {'':<{width}}  -> {remedy}")
