"""The few ptrace requests that hold a thread still without a signal, and let it go as it was.

PTRACE_SEIZE and PTRACE_INTERRUPT send no SIGSTOP, so nothing can stay pending: when the tracer ends, for whatever
reason, the kernel lets every thread go. x86-64 only: the registers are its user_regs_struct.
"""

from __future__ import annotations

import ctypes
import os

from autopsy.dataclass import dataclass

REGISTER_BYTES = 27 * 8  # struct user_regs_struct
RSP = 19  # its place in it, in words
ORIG_RAX, RIP, CS, SS = 15, 16, 17, 20
RAX, RDI, RSI, RDX, R10, R8, R9 = 10, 14, 13, 12, 7, 9, 8

_SEIZE = 0x4206
_INTERRUPT = 0x4207
_GETREGSET = 0x4204
_DETACH = 17
_NT_PRSTATUS = 1
_WALL = 0x40000000
# WNOWAIT leaves the stop's exit code with the kernel: if we are killed, a signal on its way is still delivered.
_LOOK = os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT | _WALL


class Iovec(ctypes.Structure):
    """The kernel's struct iovec: where some bytes are, and how many."""

    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


# PyDLL keeps the GIL: there is no other thread to give it to, and taking it back costs time in which the VM stands.
_libc = ctypes.PyDLL(None, use_errno=True)
_ptrace = _libc.ptrace
_ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_ptrace.restype = ctypes.c_long


@dataclass(frozen=True, slots=True)
class StoppedThread:
    """The thread stands. `signal` was about to be delivered to it (0: none) and goes with it at `detach`."""

    signal: int


@dataclass(frozen=True, slots=True)
class ThreadGone:
    """The thread has ended, or is not ours."""


@dataclass(frozen=True, slots=True)
class Moving:
    """The thread has not come to a stop yet."""


GONE = ThreadGone()
MOVING = Moving()


def seize(tid: int) -> int:
    """Make us the tracer of a thread, which runs on. Return 0, or the errno of the refusal."""
    return 0 if _ptrace(_SEIZE, tid, None, None) == 0 else ctypes.get_errno()


def interrupt(tid: int) -> None:
    """Ask a seized thread to stand still."""
    _ptrace(_INTERRUPT, tid, None, None)


def stop_state(tid: int) -> StoppedThread | ThreadGone | Moving:
    """Return how far a seized thread has come, without waiting."""
    try:
        news = os.waitid(os.P_PID, tid, _LOOK)
    except ChildProcessError:
        return GONE
    if news is None:
        return MOVING
    if news.si_code not in {os.CLD_TRAPPED, os.CLD_STOPPED}:
        return GONE
    # Above the low byte stands the ptrace event. There is none in a signal-delivery-stop: the thread stood already when
    # we interrupted it, with a signal that would be lost if it were not handed back.
    event = news.si_status >> 8
    return StoppedThread(0 if event else news.si_status)


class RegisterReader:
    """Copies the registers of standing threads into one buffer, without an allocation in between."""

    def __init__(self, buffer: memoryview) -> None:
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        self._iovec = Iovec(None, REGISTER_BYTES)
        self._at = ctypes.addressof(self._iovec)

    def read(self, tid: int, offset: int) -> bool:
        """Copy a standing thread's registers to `offset` in the buffer. Return whether the kernel gave them all."""
        self._iovec.base = self._base + offset
        self._iovec.size = REGISTER_BYTES
        return bool(_ptrace(_GETREGSET, tid, _NT_PRSTATUS, self._at) == 0 and self._iovec.size == REGISTER_BYTES)


def detach(tid: int, number: int) -> None:
    """Let a standing thread run on, with the signal that it was about to take.

    On a thread that is not standing this does nothing; the end of the tracer lets it go.
    """
    _ptrace(_DETACH, tid, None, number)
