"""Takes the cheap signs of one VM: small files of /proc that are kept open, and take no lock of its memory map.

A thread whose schedstat says the same as before has not run since: only then is it asked where it sleeps.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import field

from autopsy.bundle import proc_stat
from autopsy.dataclass import dataclass
from autopsy.linux.files import read_kernel
from autopsy.target.vital_signs import FREEZER
from autopsy.watch.sample import Halted, StillThread, VmSample
from autopsy.watch.tokens import MOST_LAG_NS

SMALL = 128
STAT = 1024
SIZE_FIELD = 23  # vsize, of proc_pid_stat(5)
# A glibc mutex that is contended: FUTEX_WAIT, private or not, on a word that holds 2. A condition waits otherwise.
FUTEX = b"202"
MUTEX_OPERATIONS = (0x80, 0x0)
CONTENDED = 2
OWN_FREEZER = frozenset({FREEZER, "__refrigerator"})  # the latter of cgroup v1
MIGRATING = ("live_migration", "mig/src/main")  # the thread's name before and since QEMU 9.1
VCPU = "CPU "
MOST_THREADS = 512  # of one VM, the oldest: who makes more of them must not leave the other VMs without descriptors
OFTEN = 3  # times that a thread had a processor between two samples


@dataclass(slots=True)
class ThreadFiles:
    """One thread: its schedstat, held open, and what it said last."""

    tid: int
    folder: str
    schedstat: int
    comm: str = ""
    counters: bytes = b""
    changed_ns: int = 0
    before_ns: int = 0  # the sample before that one
    run_ns: int = 0
    delay_ns: int = 0
    times: int = 0
    state: str = ""
    wchan: str = ""
    seen: bytes = b"-"

    @property
    def is_vcpu(self) -> bool:
        """Return whether it is named as QEMU names a vCPU's thread."""
        return self.comm.startswith(VCPU)


@dataclass(slots=True)
class VmFiles:
    """The files of one VM that are held open.

    Raises:
        OSError: the process is gone, or not ours to look at.
    """

    pid: int
    start_ticks: int
    stat: int = -1
    io: int = -1
    threads: dict[int, ThreadFiles] = field(default_factory=dict)
    eventfds: tuple[int, ...] | None = None
    sampled_ns: int = 0
    counted: int = -1

    def __post_init__(self) -> None:
        """Open what is read each time."""
        self.stat = os.open(f"/proc/{self.pid}/task/{self.pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # without the right to it, the rest still tells much
            self.io = os.open(f"/proc/{self.pid}/io", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Let go of every file."""
        for descriptor in (self.stat, self.io, *(thread.schedstat for thread in self.threads.values())):
            if descriptor >= 0:
                os.close(descriptor)
        self.threads = {}

    @property
    def vcpu_ns(self) -> int | None:
        """Return what the vCPUs' threads have run so far, None where threads have no names."""
        vcpus = [thread for thread in self.threads.values() if thread.is_vcpu]
        return sum(thread.run_ns for thread in vcpus) if vcpus else None

    def sample(self, now_ns: int, *, closely: bool) -> VmSample | None:
        """Return what is to be seen now, None when the process has ended.

        `closely`: where each thread that stands still sleeps is asked anew, and who waits for which lock.
        """
        try:
            stat = os.pread(self.stat, STAT, 0)
            main = proc_stat.parse(stat)
            fields = proc_stat.fields(stat)
            size = int(fields[SIZE_FIELD - proc_stat.FIRST])
        except (OSError, ValueError, IndexError):
            return None
        if main.start_ticks != self.start_ticks:
            return None
        ran, cpu, delay, starved = self._threads(now_ns, main.threads)
        still = [thread for thread in self.threads.values() if thread.changed_ns < now_ns]
        for thread in still:
            if closely or thread.seen != thread.counters:
                _see(thread)
        if not closely and self.pid in self.threads:
            self.threads[self.pid].state = main.state
        first = self.threads.get(self.pid)
        if any(thread.state == "R" and not thread.is_vcpu for thread in still):
            starved = max(starved, now_ns - self.sampled_ns)  # woken, and not given a processor since
        read, written = self._io()
        sample = VmSample(
            at_ns=now_ns,
            size=size,
            threads=len(self.threads),
            ran=ran,
            main=None if first is None or first.changed_ns == now_ns else _still(first, now_ns, at_lock=closely),
            asleep=tuple(_still(thread, now_ns) for thread in still if thread.state == "D"),
            vcpus=tuple(_still(thread, now_ns, at_lock=closely) for thread in still if thread.is_vcpu),
            vcpu_count=sum(thread.is_vcpu for thread in self.threads.values()),
            migrating=any(thread.comm in MIGRATING for thread in self.threads.values()),
            halted=_halted(main.state, first),
            cpu_ns=cpu,
            delay_ns=delay,
            starved_ns=starved if self.sampled_ns else 0,
            suspended_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns(),
            read_bytes=read,
            write_bytes=written,
            eventfds=self._unread() if closely else None,
        )
        self.sampled_ns = now_ns
        return sample

    def _threads(self, now_ns: int, count: int) -> tuple[int, int, int, int]:
        """Read every schedstat; return how many threads ran, how long, what all waited, and QEMU's own at most."""
        ran = cpu = delay = longest = 0
        if self.counted != count:
            self.counted = count
            self._list(now_ns)
        ended = False
        for thread in self.threads.values():
            try:
                counters = os.pread(thread.schedstat, SMALL, 0)
            except OSError:
                ended = True
                continue
            if counters == thread.counters:
                continue
            ran += 1
            run_ns, delay_ns, times = _schedstat(counters)
            if thread.counters:
                cpu += run_ns - thread.run_ns
                waited = delay_ns - thread.delay_ns
                delay += waited
                # Who is given a processor every now and then does his work, late as it is.
                if not thread.is_vcpu and times - thread.times < OFTEN:
                    longest = max(longest, waited)
            thread.counters, thread.run_ns, thread.delay_ns, thread.times = counters, run_ns, delay_ns, times
            thread.changed_ns, thread.before_ns = now_ns, self.sampled_ns
        if ended:
            self._list(now_ns)
        return ran, cpu, delay, longest

    def _list(self, now_ns: int) -> None:
        """Bring the list of threads up to date."""
        try:
            tids = set(sorted(map(int, os.listdir(f"/proc/{self.pid}/task")))[:MOST_THREADS])
        except OSError:
            return
        for tid in self.threads.keys() - tids:
            os.close(self.threads.pop(tid).schedstat)
        for tid in tids - self.threads.keys():
            folder = f"/proc/{self.pid}/task/{tid}"
            try:
                schedstat = os.open(f"{folder}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue  # it has ended since
            thread = ThreadFiles(tid, folder, schedstat, changed_ns=now_ns, before_ns=self.sampled_ns)
            thread.comm = _read(f"{folder}/comm", 64).decode("utf-8", "replace").rstrip("\n")
            with contextlib.suppress(OSError):
                thread.counters = os.pread(schedstat, SMALL, 0)
                thread.run_ns, thread.delay_ns, thread.times = _schedstat(thread.counters)
            self.threads[tid] = thread

    def _io(self) -> tuple[int | None, int | None]:
        try:
            rows = dict(row.split(b": ") for row in os.pread(self.io, SMALL * 2, 0).splitlines())
            return int(rows[b"read_bytes"]), int(rows[b"write_bytes"])
        except (OSError, ValueError, KeyError):
            return None, None

    def _unread(self) -> int | None:
        """Return the sum of the process's eventfds' counts; which they are is looked up once."""
        if self.eventfds is None:
            self.eventfds = _eventfds(self.pid)
        total = 0
        for number in self.eventfds:
            for row in _read(f"/proc/{self.pid}/fdinfo/{number}", 512).splitlines():
                key, _, value = row.partition(b":")
                if key == b"eventfd-count":
                    with contextlib.suppress(ValueError):
                        total += min(int(value, 16), 1 << 40)
        return total


def _schedstat(counters: bytes) -> tuple[int, int, int]:
    """Return how long a thread ran and waited for a processor, and how often it had one."""
    try:
        run, delay, times = counters.split()
        return int(run), int(delay), int(times)
    except ValueError:
        return 0, 0, 0


def _see(thread: ThreadFiles) -> None:
    """Ask a thread that stands still for its state, and where it sleeps."""
    data = _read(f"{thread.folder}/stat", STAT)
    thread.state = proc_stat.parse(data).state
    thread.wchan = _read(f"{thread.folder}/wchan", 256).decode("utf-8", "replace").strip("0\n")
    thread.seen = thread.counters


def _still(thread: ThreadFiles, now_ns: int, *, at_lock: bool = False) -> StillThread:
    mutex = _mutex(thread.folder) if at_lock and thread.wchan.startswith("futex_") else 0
    lag_ns = min(MOST_LAG_NS, thread.changed_ns - thread.before_ns)
    return StillThread(thread.tid, thread.comm, thread.state, now_ns - thread.changed_ns, thread.wchan, mutex, lag_ns)


def _mutex(folder: str) -> int:
    """Return the futex word of the mutex that a thread waits for, 0 where it waits for none, as for a condition."""
    words = _read(f"{folder}/syscall", 256).split()
    try:
        if words and words[0] == FUTEX and int(words[2], 16) in MUTEX_OPERATIONS and int(words[3], 16) == CONTENDED:
            return int(words[1], 16)
    except (ValueError, IndexError):
        pass
    return 0


def _halted(state: str, main: ThreadFiles | None) -> Halted | None:
    if state in ("Z", "X"):
        return Halted.DEAD
    if state in ("T", "t"):
        return Halted.SIGNAL
    return Halted.FREEZER if main is not None and main.seen == main.counters and main.wchan in OWN_FREEZER else None


def _eventfds(pid: int) -> tuple[int, ...]:
    descriptors = []
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return ()
    for name in names:
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/fd/{name}") == "anon_inode:[eventfd]":
                descriptors.append(int(name))
    return tuple(descriptors)


def _read(path: str, most: int) -> bytes:
    try:
        return read_kernel(path, most)
    except OSError:
        return b""
