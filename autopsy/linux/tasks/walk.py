"""Reads the registers of every thread of a process, with none of them stopped: a task iterator of the kernel's.

The program is a hundred instructions for bpf(2), made here from the kernel's own type information: no compiler, no
library. It loads through typed pointers only; bpf_probe_read_kernel is forbidden where the kernel is locked down.
Nothing of it outlives us: program, link and iterator are descriptors.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from typing import BinaryIO

from autopsy.dataclass import dataclass
from autopsy.linux.tasks import btf
from autopsy.linux.tasks.btf import OddTypes, Types

TYPES = "/sys/kernel/btf/vmlinux"
NAME = b"autopsy_walk"
INITIAL_PIDS = "pid:[4026531836]"  # PROC_PID_INIT_INO: a walk counts processes as the first PID namespace does
SYS_BPF = 321  # of x86-64
PROG_LOAD, LINK_CREATE, ITER_CREATE = 5, 28, 33
TRACING, TRACE_ITER = 26, 28
TASK_PT_REGS, SEQ_WRITE = 175, 127  # helpers
DEAD = 0x80  # TASK_DEAD
MEMBERS = ("on_cpu", "pid", "nvcsw", "nivcsw", "__state", "flags", "tgid")  # of a task that are read
REGISTERS = 21  # words of struct pt_regs, with which struct user_regs_struct begins
ORIG_RAX, RAX = 15, 10
IOCTL, ENOSYS = 16, (1 << 64) - 38

# One record: tid, on_cpu, switches, state, flags, fs_base, then the registers.
WORDS = 6 + REGISTERS
RECORD = struct.Struct(f"<{WORDS}Q")
LOAD_WORD, LOAD_INT, STORE, MOVE, ADD, CALL, EXIT = 0x79, 0x61, 0x7B, 0xBF, 0x0F, 0x85, 0x95
MOVE_VALUE, ADD_VALUE, IF_EQUAL, IF_UNEQUAL = 0xB7, 0x07, 0x15, 0x55
KERNELS_OWN = 0x200000 | 0x4000  # PF_KTHREAD, PF_USER_WORKER


class NoWalk(Exception):
    """The kernel does not let us walk, or not in a way that we know; the words say why."""


@dataclass(frozen=True, slots=True)
class WalkedThread:
    """One thread at one walk. `switches` counts how often it has left a CPU; `registers` is a user_regs_struct.

    The registers are those with which it entered the kernel; on a CPU it may have left it since.
    """

    tid: int
    on_cpu: bool
    switches: int
    registers: bytes
    in_ioctl: bool

    def same(self, later: WalkedThread) -> bool:
        """Return whether it has stood still from this walk to a later one.

        Who is off the CPU at both, and was not switched away from meanwhile, has not run in between. A vCPU that is
        in KVM_RUN at both is on a CPU, but not with what it keeps for QEMU: its registers here are those of the call,
        for rax holds -ENOSYS from its entry until just before it returns.
        """
        if self.registers != later.registers:
            return False
        if self.on_cpu or later.on_cpu:
            return self.in_ioctl and later.in_ioctl
        return self.switches == later.switches


class Walker:
    """Walks the threads of one process as often as it is asked to. Close it after use.

    `looks_at_one` tells whether the kernel lets one thread be looked at alone.

    Raises:
        NoWalk: it cannot be had here.
    """

    def __init__(self, pid: int) -> None:
        try:
            if os.uname().machine != "x86_64" or os.readlink("/proc/self/ns/pid") != INITIAL_PIDS:
                raise NoWalk("this is not x86-64, or another PID namespace than the host's first")
            kernel = _kernel(TYPES)
            self._program = _load(_program(kernel, pid), kernel.function)
            try:
                self._link, self.looks_at_one = _link_of_process(self._program, pid)
            except OSError:
                os.close(self._program)
                raise
        except OddTypes as error:
            raise NoWalk(f"the kernel's type information: {error}") from error
        except OSError as error:
            raise NoWalk(f"{error.filename or 'bpf'}: {error.strerror}") from error

    def close(self) -> None:
        """Let go of the program, which ends it."""
        os.close(self._link)
        os.close(self._program)

    def walk(self) -> dict[int, WalkedThread]:
        """Return every living thread that has user registers, by its tid.

        Raises:
            NoWalk: the kernel refused.
        """
        try:
            return _walked(self._link)
        except OSError as error:
            raise NoWalk(f"bpf: {error.strerror}") from error

    def look_at(self, tid: int) -> WalkedThread | None:
        """Return one thread, looked at alone: of two thousand, a walk takes a thousand times as long.

        Raises:
            NoWalk: the kernel refused, as each does that is older than 6.1.
        """
        try:
            link = _link(self._program, tid=tid)
            try:
                return _walked(link).get(tid)
            finally:
                os.close(link)
        except OSError as error:
            raise NoWalk(f"bpf: {error.strerror}") from error


def _walked(link: int) -> dict[int, WalkedThread]:
    stream = _bpf(ITER_CREATE, struct.pack("<II", link, 0))
    try:
        parts = []
        while part := os.read(stream, 1 << 20):
            parts.append(part)
    finally:
        os.close(stream)
    data = b"".join(parts)
    threads = {}
    for tid, on_cpu, switches, state, flags, fs_base, *registers in RECORD.iter_unpack(
        data[: len(data) - len(data) % RECORD.size]
    ):
        if state & DEAD or flags & KERNELS_OWN:
            continue
        threads[tid] = WalkedThread(
            tid=tid,
            on_cpu=bool(on_cpu),
            switches=switches,
            registers=struct.pack("<27Q", *registers, fs_base, 0, 0, 0, 0, 0),
            in_ioctl=registers[ORIG_RAX] == IOCTL and registers[RAX] == ENOSYS,
        )
    return threads


def _read(stream: BinaryIO) -> bytes | mmap.mmap:
    """Return the types. Newer kernels (seen on 6.18) let them be mapped; elsewhere the file is read."""
    try:
        size = min(btf.MOST_BYTES, os.fstat(stream.fileno()).st_size)
        return mmap.mmap(stream.fileno(), size, mmap.MAP_PRIVATE, mmap.PROT_READ)
    except (OSError, ValueError):
        return stream.read(btf.MOST_BYTES)


@dataclass(frozen=True, slots=True)
class KernelLayout:
    """Where the members of a task lie in this kernel, the sequence file of an iterator, and the iterator's number."""

    task: Mapping[str, int]
    fs_base: int
    seq: int
    function: int


@cache
def _kernel(path: str) -> KernelLayout:
    """Return what a program must know of this kernel.

    Raises:
        OddTypes, OSError: it does not tell.
    """
    with open(path, "rb") as stream:
        types = Types(_read(stream))
    task = types.place(btf.STRUCT, "task_struct")
    thread = types.place(btf.STRUCT, "thread_struct")
    return KernelLayout(
        task={member: types.offset(task, member) for member in MEMBERS},
        fs_base=types.offset(task, "thread") + types.offset(thread, "fsbase"),
        seq=types.offset(types.place(btf.STRUCT, "bpf_iter_meta"), "seq"),
        function=types.number(btf.FUNCTION, "bpf_iter_task"),
    )


def warm() -> None:
    """Look the kernel's types up ahead, for all children of this process that walk."""
    with suppress(OddTypes, OSError):
        _kernel(TYPES)


def _program(kernel: KernelLayout, pid: int) -> bytes:
    """Return the instructions: for each thread of the process one record into the iterator's file."""
    top = -RECORD.size

    def keep(word: int) -> bytes:
        return _op(STORE, 10, 1, top + 8 * word)

    def load(code: int, member: str) -> bytes:
        return _op(code, 1, 7, kernel.task[member])

    body = [
        # on_cpu comes before the counts: one who is switched away between these two loads must not pass for still.
        *(load(LOAD_INT, "on_cpu"), keep(1)),
        *(load(LOAD_INT, "pid"), keep(0)),
        *(load(LOAD_WORD, "nvcsw"), _op(LOAD_WORD, 2, 7, kernel.task["nivcsw"]), _op(ADD, 1, 2), keep(2)),
        *(load(LOAD_INT, "__state"), keep(3)),
        *(load(LOAD_INT, "flags"), keep(4)),
        *(_op(LOAD_WORD, 1, 7, kernel.fs_base), keep(5)),
        *(_op(MOVE, 1, 7), _op(CALL, value=TASK_PT_REGS)),
    ]
    for word in range(REGISTERS):
        body += [_op(LOAD_WORD, 1, 0, 8 * word), keep(6 + word)]
    body += [
        *(_op(LOAD_WORD, 1, 6, 0), _op(LOAD_WORD, 1, 1, kernel.seq)),
        *(_op(MOVE, 2, 10), _op(ADD_VALUE, 2, value=top), _op(MOVE_VALUE, 3, value=RECORD.size)),
        _op(CALL, value=SEQ_WRITE),
    ]
    head = [
        *(_op(MOVE, 6, 1), _op(LOAD_WORD, 7, 6, 8)),
        _op(IF_EQUAL, 7, place=len(body) + 2),  # no task: the end of the walk
        *(_op(LOAD_INT, 1, 7, kernel.task["tgid"]), _op(IF_UNEQUAL, 1, place=len(body), value=pid)),
    ]
    return b"".join((*head, *body, _op(MOVE_VALUE), _op(EXIT)))


def _op(code: int, target: int = 0, source: int = 0, place: int = 0, value: int = 0) -> bytes:
    try:
        return struct.pack("<BBhi", code, target | source << 4, place, value)
    except struct.error as error:
        raise OddTypes("a member lies further from its structure's start than any does") from error


def _load(program: bytes, function: int) -> int:
    code, licence = ctypes.create_string_buffer(program, len(program)), ctypes.create_string_buffer(b"GPL")
    head = struct.pack("<IIQQ", TRACING, len(program) // 8, ctypes.addressof(code), ctypes.addressof(licence))
    # No log; no version, no flags; a name; no device; what it is attached to, with no debug information of its own.
    rest = struct.pack("<IIQII16sII", 0, 0, 0, 0, 0, NAME, 0, TRACE_ITER) + struct.pack(
        "<IIQIIQII", 0, 0, 0, 0, 0, 0, 0, function
    )
    return _bpf(PROG_LOAD, head + rest)


def _link_of_process(program: int, pid: int) -> tuple[int, bool]:
    """Return a walk of one process, and whether one of a thread can be had, too."""
    try:
        return _link(program, pid=pid), True
    except OSError:  # an older kernel walks all of the host's, of which the program leaves out the others
        return _bpf(LINK_CREATE, struct.pack("<IIIIQI", program, 0, TRACE_ITER, 0, 0, 0)), False


def _link(program: int, *, tid: int = 0, pid: int = 0) -> int:
    """Return a walk of one thread or one process, with and not before Linux 6.1.

    That is commit f0d74c4da1f0 ("bpf: Parameterize task iterators.").
    """
    only = ctypes.create_string_buffer(struct.pack("<III", tid, pid, 0))
    return _bpf(LINK_CREATE, struct.pack("<IIIIQI", program, 0, TRACE_ITER, 0, ctypes.addressof(only), 12))


_libc = ctypes.PyDLL(None, use_errno=True)


def _bpf(command: int, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result = int(_libc.syscall(SYS_BPF, command, buffer, len(attributes)))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
