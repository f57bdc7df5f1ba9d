"""The last minute of a VM's samples as the watch leaves them: a header's line, then one a sample, the oldest first."""

from __future__ import annotations

import msgspec

from autopsy.dataclass import dataclass

SCHEMA = 1


class RingHeader(msgspec.Struct, frozen=True, kw_only=True):
    """Whose ring it is. `began_monotonic_ns` is when the stall began, absent without one; `kind` is empty then.

    `seen_moving_ns` is the last time that what stands still was seen to move, or not to be there: the stall began
    between the two.
    """

    schema: int = SCHEMA
    pid: int
    start_ticks: int
    boot_id: str
    began_monotonic_ns: int | None = None
    seen_moving_ns: int | None = None
    kind: str = ""


class RingSample(msgspec.Struct, frozen=True, kw_only=True):
    """One sample. `state` is a WatchState's word.

    `main_state` is the main thread's letter of proc(5), `main_wchan` where it slept, known while it stands still only.
    `threads_ran` counts the threads that had a processor since the sample before; `cpu_ms` and `run_delay_ms` are what
    all threads ran and waited for one since then. `read_bytes` and `write_bytes` are those of /proc/PID/io.
    `requests` are the block requests in flight at the last look at their coroutines, absent where they cannot be
    counted; `unmoved` of them stood where they had stood before, the oldest for `oldest_unmoved_ms`; `moved` counts
    those that went on or ended between the last two looks. `eventfds` is the sum of what was written to the
    process's eventfds and not yet read, absent where it was not looked at. `host_requests` are in flight at the host's
    block devices below the process's files, of whoever, absent where there are none; for `host_unmoved_ms` one of those
    devices had some and completed none.
    """

    monotonic_ns: int
    state: str
    main_state: str = ""
    main_wchan: str = ""
    threads: int = 0
    threads_ran: int = 0
    threads_in_d: int = 0
    cpu_ms: float = 0.0
    run_delay_ms: float = 0.0
    read_bytes: int | None = None
    write_bytes: int | None = None
    requests: int | None = None
    moved: int = 0
    unmoved: int = 0
    oldest_unmoved_ms: int = 0
    eventfds: int | None = None
    host_requests: int | None = None
    host_unmoved_ms: int = 0


@dataclass(frozen=True, slots=True)
class Ring:
    """What a ring's file holds."""

    header: RingHeader
    samples: tuple[RingSample, ...]


def encode(ring: Ring) -> bytes:
    """Return a ring as JSON lines."""
    return b"".join(msgspec.json.encode(line) + b"\n" for line in (ring.header, *ring.samples))


def decode(data: bytes) -> Ring:
    """Return what JSON lines hold.

    Raises:
        ValueError: they are no ring.
    """
    first, *rest = data.splitlines() or [b""]
    header = msgspec.json.decode(first, type=RingHeader)  # msgspec's errors are ValueErrors
    return Ring(header, tuple(msgspec.json.decode(line, type=RingSample) for line in rest))
