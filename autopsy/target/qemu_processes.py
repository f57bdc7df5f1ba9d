"""QEMUs that nobody but their own command line speaks for, found among all processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial

import msgspec
import psutil

from autopsy.linux.batch import Unanswered, ask
from autopsy.linux.files import read_kernel
from autopsy.linux.tasks.priority import Unpreempted
from autopsy.target import identity
from autopsy.target.command_line import MOST_BYTES, daemon_options, options, words
from autopsy.target.identity import STORAGE_DAEMON, Binary, Known
from autopsy.target.image import is_loader, named_like_qemu
from autopsy.target.platforms.owned import is_trusted, started_by
from autopsy.target.qemu_process import QemuProcess

EACH = 1.0  # seconds for one question about one process
OVERALL = 4.0  # seconds for all of them


def suspects(pids: Iterable[int] | None = None) -> tuple[int, ...]:
    """Return the processes that are named like a QEMU, of these or of all: anybody may take such a name."""
    among = psutil.pids() if pids is None else pids
    return tuple(pid for pid in among if _looks_like(pid) or _is_behind_a_loader(pid))


def _is_behind_a_loader(pid: int) -> bool:
    with suppress(OSError):
        return is_loader(identity.exe_link(pid))
    return False


def _looks_like(pid: int) -> bool:
    """Return whether the binary or the process has such a name: an upgrade may rename the one, `-name` the other."""
    try:
        if named_like_qemu(identity.exe_link(pid)):
            return True
    except PermissionError:
        pass  # not ours to see; its name is
    except OSError:
        if not _is_dead(pid):
            return False  # a kernel thread, or gone
    return _comm_like_qemu(pid)


def _is_dead(pid: int) -> bool:
    try:
        return identity.stat_of(f"/proc/{pid}").state == "Z"
    except (OSError, ValueError, IndexError):
        return False


def _comm_like_qemu(pid: int) -> bool:
    try:
        comm = read_kernel(f"/proc/{pid}/comm", 64)
    except OSError:
        return False
    return comm.startswith((b"qemu-system", b"qemu-kvm", b"kvm"))


def tell(pids: Sequence[int], *, each: float = EACH, overall: float = OVERALL) -> dict[int, QemuProcess]:
    """Ask every process for its binary and its command line, none of them longer than `each` seconds.

    The command line takes the lock of the process's memory map, and the binary may lie on a file system that hangs:
    both are read in a child. Command lines come first, for they are short, and root's processes before others', those
    of the user who has most of them last: anybody may start many that are slow to tell, and named like a QEMU.
    """
    known: Known = {}
    users = {pid: started_by(pid) for pid in pids}
    count = Counter(users.values())
    pids = sorted(pids, key=lambda pid: (not is_trusted(users[pid]), count[users[pid]], pid))
    lines = [partial(_arguments, pid) for pid in pids]
    binaries = [partial(_binary, pid, known) for pid in pids]
    answers = ask(lines + binaries, each=each, overall=overall, owners=[users[pid] for pid in pids] * 2)
    processes = {}
    for pid, line, binary in zip(pids, answers[: len(pids)], answers[len(pids) :], strict=True):
        processes[pid] = _told(
            binary if isinstance(binary, Unanswered) else msgspec.msgpack.decode(binary, type=Binary),
            line if isinstance(line, Unanswered) else words(line),
            named=_looks_like(pid),
        )
    return processes


def _told(binary: Binary | Unanswered, arguments: tuple[str, ...] | Unanswered, *, named: bool) -> QemuProcess:
    if isinstance(arguments, Unanswered):
        return QemuProcess(binary, arguments, None, named)
    daemon = not isinstance(binary, Unanswered) and binary.program == STORAGE_DAEMON
    return QemuProcess(binary, arguments, daemon_options(arguments) if daemon else options(arguments), named)


def _binary(pid: int, known: Known) -> bytes:
    return msgspec.msgpack.encode(identity.binary_of(pid, known))


def _arguments(pid: int) -> bytes:
    with Unpreempted():
        return read_kernel(f"/proc/{pid}/cmdline", MOST_BYTES)
