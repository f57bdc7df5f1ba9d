"""Every mechanism that is looked for in imported evidence, the more particular before the more general."""

from __future__ import annotations

from autopsy.diagnose.frames import block_waits, crash, outside_waits, thread_waits
from autopsy.diagnose.signature import Signature

FROM_FRAMES: tuple[Signature, ...] = (
    *crash.SIGNATURES,
    *outside_waits.SIGNATURES_FIRST,
    *block_waits.SIGNATURES,
    *thread_waits.SIGNATURES,
    *outside_waits.SIGNATURES,
)
