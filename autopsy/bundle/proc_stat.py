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
    told = fields(stat)
    return ProcStat(
        pid=_number(pid.strip()),
        comm=comm.decode("utf-8", "backslashreplace"),
        state=told[0][:1].decode("ascii", "replace") if told else "",
        ppid=_field(told, PPID),
        session=_field(told, SESSION),
        cpu_ticks=_field(told, UTIME) + _field(told, STIME),
        threads=_field(told, THREADS),
        start_ticks=_field(told, STARTED),
        environment=(_field(told, ENV_START), _field(told, ENV_END)),
    )


def _field(told: list[bytes], number: int) -> int:
    place = number - FIRST
    return _number(told[place]) if place < len(told) else 0


def _number(digits: bytes) -> int:
    return int(digits) if digits.isdigit() and len(digits) < 24 else 0
