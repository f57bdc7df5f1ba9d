"""Which process this is: its start, its binary, the QEMU version and build-id that lie in that binary."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable

import msgspec

from autopsy.bundle.manifest import Program
from autopsy.bundle.proc_stat import ProcStat, parse
from autopsy.dataclass import dataclass
from autopsy.linux.files import read_kernel, real_path_in
from autopsy.target.image import image_of

STORAGE_DAEMON: Program = "qemu-storage-daemon"
# Found by the words first: re takes twice as long to come to them.
VERSIONS: tuple[tuple[Program, bytes], ...] = (
    ("qemu-system", b"QEMU emulator version "),
    (STORAGE_DAEMON, b"qemu-storage-daemon version "),
)
VERSION = re.compile(rb"\d[^\0\n]{0,120}")
PART = 128 << 10  # of a binary at a time: larger ones are new memory each time, which costs more than to read it
OVERLAP = 256  # a version's text may lie across two parts
MOST_BINARY = 64 << 20  # of it, for a version: .rodata lies before what a debugger wants, and some 20 MB in
MOST_NOTES = 1 << 20
DELETED = " (deleted)"

PT_NOTE = 4
NT_GNU_BUILD_ID = 3


def stat_of(folder: str) -> ProcStat:
    """Read the stat file in /proc/PID or /proc/PID/task/TID, which takes no lock of the process's memory map.

    Raises:
        OSError: there is no such process any more.
    """
    return parse(read_kernel(f"{folder}/stat", 4096))


def exists(pid: int) -> bool:
    """Return whether there is such a process, even where /proc does not show it to us."""
    try:
        os.kill(pid, 0)  # sends nothing
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


@dataclass(frozen=True, slots=True)
class Asleep:
    """A thread in an uninterruptible sleep, and the kernel function that it sleeps in."""

    tid: int
    comm: str
    wchan: str


def in_uninterruptible_sleep(pid: int) -> tuple[Asleep, ...]:
    """Return the threads in state D."""
    return asleep_among(pid, threads(pid))


def asleep_among(pid: int, among: Iterable[ProcStat]) -> tuple[Asleep, ...]:
    """Return those threads of a process that were in state D, and where they sleep."""
    return tuple(Asleep(thread.pid, thread.comm, wchan_of(pid, thread.pid)) for thread in among if thread.state == "D")


def threads(pid: int) -> tuple[ProcStat, ...]:
    """Return the stat of every thread that is still there."""
    stats = []
    try:
        tids = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return ()
    for tid in tids:
        try:
            stats.append(stat_of(f"/proc/{pid}/task/{tid}"))
        except (OSError, ValueError, IndexError):
            continue  # it has ended since
    return tuple(stats)


def wchan_of(pid: int, tid: int) -> str:
    """Return the kernel function that a thread sleeps in, empty when the kernel does not tell."""
    try:
        return read_kernel(f"/proc/{pid}/task/{tid}/wchan", 256).decode("utf-8", "replace").strip("0\n")
    except OSError:
        return ""


def exe_link(pid: int) -> str:
    """Return where /proc/PID/exe leads; ends in " (deleted)" when nothing is there any more.

    Raises:
        OSError: PermissionError where the kernel does not show it to us; ENOENT for a kernel thread or a zombie.
    """
    return os.readlink(f"/proc/{pid}/exe")


def clean(text: str) -> str:
    """Return words from outside as JSON can hold them: what is no UTF-8 in them is escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


class Binary(msgspec.Struct, frozen=True, kw_only=True):
    """The binary that a process runs. `qemu_version` is empty for neither a system emulator nor a storage daemon.

    `replaced`: another file lies at that path now, as after an upgrade; a deleted binary has `deleted` alone.
    """

    path: str
    deleted: bool
    replaced: bool
    qemu_version: str
    build_id: str
    program: Program = "qemu-system"


# What was read out of a binary: its program, version and build-id, by device, inode and time of change.
Known = dict[tuple[int, int, int], tuple[Program, str, str]]


def binary_of(pid: int, known: Known | None = None) -> Binary:
    """Read the version and the build-id out of the program that a process runs, even of a deleted one.

    Can block where the binary's file system hangs: call it in a child. `known` keeps what was read, by device, inode
    and time of change, for other processes that run the same binary.

    Raises:
        OSError: the process is gone, or the kernel does not show it to us.
    """
    image = image_of(pid)
    link = image.link
    descriptor = os.open(image.place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        key = (status.st_dev, status.st_ino, status.st_mtime_ns)
        read = known.get(key) if known else None
        if read is None:
            read = (*version_in(descriptor), build_id_in(descriptor))
        if known is not None:
            known[key] = read
    finally:
        os.close(descriptor)
    root = f"/proc/{pid}/root"
    deleted = link.endswith(DELETED) and _at(root, link) != key[:2]  # a file may really be named "qemu (deleted)"
    path = link.removesuffix(DELETED) if deleted else link
    replaced = _at(root, path) not in (None, key[:2])
    program, version, build_id = read
    return Binary(
        path=clean(path), deleted=deleted, replaced=replaced, qemu_version=version, build_id=build_id, program=program
    )


def _at(root: str, path: str) -> tuple[int, int] | None:
    """Return device and inode of what lies at a path as the process sees it."""
    try:
        status = os.stat(f"{root}{real_path_in(root, path)}")
    except OSError:
        return None
    return (status.st_dev, status.st_ino)


def version_in(descriptor: int) -> tuple[Program, str]:
    """Return what the program's `--version` would print after its name and "version", without running anything.

    The words lie in .rodata of every system emulator (vl.c, later softmmu/vl.c, system/vl.c) and of every storage
    daemon (storage-daemon/qemu-storage-daemon.c), stripped or not. The version is empty where it is neither.
    """
    place = 0
    while place < MOST_BINARY:
        part = os.pread(descriptor, PART, place)
        for program, words in VERSIONS:
            at = part.find(words)
            while at >= 0:
                begins = at + len(words)
                if match := VERSION.match(part, begins):
                    whole = VERSION.match(os.pread(descriptor, OVERLAP, place + begins)) or match
                    return program, whole[0].decode("utf-8", "replace").strip()
                at = part.find(words, begins)
        if len(part) < PART:
            break
        place += PART - OVERLAP
    return "qemu-system", ""


def build_id_in(descriptor: int) -> str:
    """Return the GNU build-id of an ELF file in hex, empty when it has none or is no ELF file."""
    try:
        return _build_id(descriptor)
    except (struct.error, OverflowError, OSError):
        return ""


def _build_id(descriptor: int) -> str:
    head = os.pread(descriptor, 64, 0)
    if head[:4] != b"\x7fELF" or head[4] not in (1, 2) or head[5] not in (1, 2):
        return ""
    wide = head[4] == 2
    order = "<" if head[5] == 1 else ">"
    # e_phoff, then e_phentsize and e_phnum: elf(5)
    (table,) = struct.unpack_from(order + ("Q" if wide else "I"), head, 32 if wide else 28)
    size, count = struct.unpack_from(order + "HH", head, 54 if wide else 42)
    headers = os.pread(descriptor, min(size * count, 1 << 16), table)
    for start in range(0, len(headers) - size + 1, max(size, 1)):
        (kind,) = struct.unpack_from(order + "I", headers, start)
        if kind != PT_NOTE:
            continue
        # p_offset, p_filesz, p_align
        offset, length, align = (
            struct.unpack_from(order + letter, headers, start + at)[0]
            for letter, at in ((("Q", 8), ("Q", 32), ("Q", 48)) if wide else (("I", 4), ("I", 16), ("I", 28)))
        )
        notes = os.pread(descriptor, min(length, MOST_NOTES), offset)
        if build_id := _build_id_note(notes, order, 8 if align == 8 else 4):
            return build_id
    return ""


def _build_id_note(notes: bytes, order: str, align: int) -> str:
    place = 0
    while place + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from(order + "III", notes, place)
        name = place + 12
        start = -(-(name + name_size) // align) * align
        if kind == NT_GNU_BUILD_ID and notes[name : name + name_size] == b"GNU\0" and size <= 64:
            return notes[start : start + size].hex()
        place = -(-(start + size) // align) * align
    return ""
