"""Says that nothing looks stuck where QEMU itself could not be asked, and so nothing is proven."""

from __future__ import annotations

from autopsy.diagnose.queries.account import unexplained
from autopsy.diagnose.queries.requests import still
from autopsy.diagnose.queries.threads import looks, threads
from autopsy.facts.cite import Known
from autopsy.facts.model.facts import Facts, Origin
from autopsy.facts.model.yield_points import DISK_PARKS


def nothing_looks_stuck(facts: Facts) -> str:
    """Return that in words, empty where something does or where too little was looked at."""
    if facts.origin is not Origin.CAPTURE or not isinstance(facts.threads, Known):
        return ""
    if not isinstance(facts.coroutines, Known) or still(facts, *DISK_PARKS) or unexplained(facts):
        return ""
    if any(look.state in {"D", "T", "t"} for thread in threads(facts) for look in looks(thread)):
        return ""
    why = f": {facts.monitor.not_asked}" if facts.monitor.not_asked else ""
    return (
        "Nothing looks stuck: no request is parked, no thread waits in the kernel; not proven, for QEMU could not be "
        f"asked{why}"
    )
