"""What to do next about each signature, and what a kill makes unknowable for good."""

from __future__ import annotations

from types import MappingProxyType

from autopsy.diagnose import advice_host, advice_peers, advice_qemu
from autopsy.diagnose.counsel import Advice

UNKNOWN = Advice(
    (
        "Capture again with what is missing: as root, with gdb, without `--fast`, with a second exposure",
        "Install QEMU's debug symbols and examine the stored core: `autopsy examine BUNDLE --debug-file F`",
        "If it must be killed now: `autopsy capture TARGET --then-kill` seals what there is, first",
    ),
    ("Everything that only the living process holds: see the list in the report",),
)

ADVICE = MappingProxyType({**advice_host.ADVICE, **advice_peers.ADVICE, **advice_qemu.ADVICE, "unknown": UNKNOWN})
