"""Reads /proc/PID/stat and /proc/PID/task/TID/stat, live or stored."""

from __future__ import annotations

from autopsy.dataclass import dataclass

FIRST = 3  # proc_pid_stat(5) counts from 1, and the fields after the name begin with the third
STATE, PPID, SESSION, FLAGS, UTIME, STIME, THREADS, STARTED, ENV_START, ENV_END = 3, 4, 6, 9, 14, 15, 20, 22, 50, 51


@dataclass(frozen=True, slots=True)
class ProcStat:
    """What is used of such a file; 0 or empty where it does not tell, as with a process that has gone.

    `start_ticks` (field 22) are clock ticks since boot, `cpu_ticks` those in user and system mode together.
    """

    pid: int = 0
    comm: str = ""
    state: str = ""
    ppid: int = 0
    session: int = 0
    cpu_ticks: int = 0
    threads: int = 0
    start_ticks: int = 0
    environment: tuple[int, int] = (0, 0)


def fields(stat: bytes) -> list[bytes]:
    """Return the fields from the third on; a thread may be called "x) R 1", so they are what follows the last `)`."""
    return stat.rpartition(b")")[2].split()


def parse(stat: bytes) -> ProcStat:
    """Return what the bytes of such a file say; never raises."""
    head = stat.rpartition(b")")[0]
    pid, _, comm = head.partition(b"(")
    values = fields(stat)
    return ProcStat(
        pid=_number(pid.strip()),
        comm=comm.decode("utf-8", "backslashreplace"),
        state=values[0][:1].decode("ascii", "replace") if values else "",
        ppid=_field(values, PPID),
        session=_field(values, SESSION),
        cpu_ticks=_field(values, UTIME) + _field(values, STIME),
        threads=_field(values, THREADS),
        start_ticks=_field(values, STARTED),
        environment=(_field(values, ENV_START), _field(values, ENV_END)),
    )


def _field(values: list[bytes], number: int) -> int:
    place = number - FIRST
    return _number(values[place]) if place < len(values) else 0


def _number(digits: bytes) -> int:
    return int(digits) if digits.isdigit() and len(digits) < 24 else 0
