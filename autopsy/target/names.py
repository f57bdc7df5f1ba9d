"""The words that mean this host's VMs, without a look at how they are: for who completes a name."""

from __future__ import annotations

import re

from autopsy.target import qemu_processes
from autopsy.target.command_line import vm_name
from autopsy.target.platforms.platform import ROOTS, Roots
from autopsy.target.qemu_process import is_qemu
from autopsy.target.resolve import all_claims, is_true

EACH = 0.2  # seconds for one question about one process
OVERALL = 0.6


def names_of_vms(roots: Roots = ROOTS) -> tuple[tuple[str, int], ...]:
    """Return each VM's name with its process, by name; the process where it has none, or another too."""
    named = qemu_processes.suspects()
    claims = all_claims(named, roots)
    processes = qemu_processes.tell(sorted({*named, *(claim.pid for claim in claims)}), each=EACH, overall=OVERALL)
    by_pid: dict[int, str] = {}
    for pid, one in processes.items():
        if is_qemu(one):
            by_pid[pid] = vm_name(one.options or ())
    for claim in claims:
        if claim.pid in by_pid and is_true(claim, processes[claim.pid]):
            by_pid[claim.pid] = claim.name
    names = list(by_pid.values())
    alone = {name for name in names if _is_a_word(name) and names.count(name) == 1}
    return tuple(sorted((name if name in alone else str(pid), pid) for pid, name in by_pid.items()))


def _is_a_word(name: str) -> bool:
    """Return whether a shell takes a name for one word, whoever chose it."""
    return re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+@-]*", name) is not None
