"""Every signature there is, in the order in which they are judged and shown."""

from __future__ import annotations

from autopsy.diagnose.judgement import Signature
from autopsy.diagnose.signatures import (
    aio,
    block,
    blocking_peers,
    control,
    devices,
    guest,
    healthy,
    helpers,
    jobs,
    limits,
    main_loop,
    peers,
    process,
    run_state,
    storage,
    throttle,
)

SIGNATURES: tuple[Signature, ...] = (
    *process.SIGNATURES,
    *run_state.SIGNATURES,
    *throttle.SIGNATURES,
    *limits.SIGNATURES,
    *storage.SIGNATURES,
    *peers.SIGNATURES,
    *helpers.SIGNATURES,
    *blocking_peers.SIGNATURES,
    *aio.SIGNATURES,
    *block.SIGNATURES,
    *jobs.SIGNATURES,
    *devices.SIGNATURES,
    *control.SIGNATURES,
    *main_loop.SIGNATURES,
    *guest.SIGNATURES,
    *healthy.SIGNATURES,
)
