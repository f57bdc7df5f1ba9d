"""How often an index has met what a bundle shows."""

from __future__ import annotations

from autopsy.fleet.index.local import local_parts
from autopsy.fleet.index.query import ask
from autopsy.fleet.index.questions import SEEN
from autopsy.fleet.index.row import FleetRow

DAY = "%Y-%m-%d"


def seen_words(place: str, row: FleetRow) -> str:
    """Return it in words.

    Raises:
        AutopsyError: the index cannot be read.
    """
    parts = local_parts(place)
    if not parts:
        return "the index is empty"
    ((times, hosts, first, last),) = ask(parts, SEEN, {"cluster": row.cluster, "bundle": row.bundle}).rows
    if not times:
        return f"never ({row.cluster})"
    when = f", first {first.strftime(DAY)}, last {last.strftime(DAY)}" if first and last else ""
    count = "once" if times == 1 else f"{times} times"
    return f"{count} on {hosts} {'host' if hosts == 1 else 'hosts'}{when} ({row.cluster})"
