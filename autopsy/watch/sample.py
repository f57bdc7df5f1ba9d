"""What one look at a VM from outside has seen, before anybody judges it."""

from __future__ import annotations

from enum import Enum

from autopsy.dataclass import dataclass
from autopsy.watch.coroutine_look import CoroutineLook
from autopsy.watch.signs.host_devices import HostRequests


class Halted(Enum):
    """Why no thread of a process runs, though nothing is wrong with the VM itself."""

    SIGNAL = "stopped by a signal or a debugger"
    FREEZER = "frozen by its control group"
    DEAD = "has ended"


@dataclass(frozen=True, slots=True)
class StillThread:
    """A thread that has not run since an earlier sample.

    `still_ns` is how long at least, `lag_ns` how much longer it may be: from the sample before the last one for which
    it had run. `wchan` is where it sleeps, empty where the kernel does not tell; `mutex` is the
    futex word of the lock that it waits for, 0 where it waits for none, or where that was not looked at.
    """

    tid: int
    comm: str
    state: str
    still_ns: int
    wchan: str = ""
    mutex: int = 0
    lag_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class VmSample:
    """One sample of a VM. Times are CLOCK_MONOTONIC in ns.

    `main` is absent while the main thread runs now and then. `asleep` are the threads in D that have not run since an
    earlier sample, `vcpus` the vCPUs' that have not; `vcpu_count` is how many are named so, 0 where threads have no
    names. `starved_ns` is for how long since the sample before a thread of QEMU's own would have run and could not.
    `suspended_ns` is for how long the host has been suspended since it was booted, `held_ns` for how long the watch
    itself has been held since it began.
    """

    at_ns: int
    size: int
    threads: int
    ran: int
    main: StillThread | None = None
    asleep: tuple[StillThread, ...] = ()
    vcpus: tuple[StillThread, ...] = ()
    vcpu_count: int = 0
    migrating: bool = False
    halted: Halted | None = None
    cpu_ns: int = 0
    delay_ns: int = 0
    starved_ns: int = 0
    suspended_ns: int = 0
    held_ns: int = 0
    read_bytes: int | None = None
    write_bytes: int | None = None
    eventfds: int | None = None
    host: HostRequests = HostRequests()
    look: CoroutineLook | None = None
    hung: bool = False
