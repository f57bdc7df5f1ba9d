"""Every signature there is, in the order in which they are judged and shown."""

from __future__ import annotations

from autopsy.diagnose.signature import Signature
from autopsy.diagnose.signatures import (
    aio,
    block,
    blocking_peers,
    cgroup_limits,
    device_backends,
    devices,
    ended,
    failures,
    guest,
    healthy,
    host_kernel,
    jobs,
    locks,
    main_loop,
    peers,
    process,
    run_state,
    start,
    throttle,
)

SIGNATURES: tuple[Signature, ...] = (
    *ended.SIGNATURES,
    *process.SIGNATURES,
    *run_state.SIGNATURES,
    *start.SIGNATURES,
    *throttle.SIGNATURES,
    *cgroup_limits.SIGNATURES,
    *host_kernel.SIGNATURES,
    *peers.SIGNATURES,
    *device_backends.SIGNATURES,
    *blocking_peers.SIGNATURES,
    *aio.SIGNATURES,
    *block.SIGNATURES,
    *jobs.SIGNATURES,
    *devices.SIGNATURES,
    *failures.SIGNATURES,
    *locks.SIGNATURES,
    *main_loop.SIGNATURES,
    *guest.SIGNATURES,
    *healthy.SIGNATURES,
)
