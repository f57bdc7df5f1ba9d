"""Find the big QEMU lock, which is a static variable without a name in a distribution's binary."""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator

from autopsy.bundle.records import FutexWait
from autopsy.dataclass import dataclass
from autopsy.examine.core.symbols import ElfImage, Symbols

# Renamed in QEMU v9.0; before that, the lock was called qemu_global_mutex and its functions *_iothread.
VARIABLES = ("bql", "qemu_global_mutex")
# Exported functions that hand the lock to another function, and the argument's register that they hand it in.
ACCESSORS = (
    (("bql_unlock", "rdi"), ("bql_lock_impl", "rdi"), ("qemu_cond_wait_bql", "rsi")),
    (
        ("qemu_mutex_unlock_iothread", "rdi"),
        ("qemu_mutex_lock_iothread_impl", "rdi"),
        ("qemu_cond_wait_iothread", "rsi"),
    ),
)
MOST_CODE = 512  # an accessor has some 160 bytes, assertions included
VCPU = re.compile(r"CPU \d+/(KVM|TCG)")

# x86-64: `lea disp32(%rip), %reg` in a position-independent program, `mov $imm32, %reg` in another.
LEA = {"rdi": b"\x48\x8d\x3d", "rsi": b"\x48\x8d\x35"}
MOVE = {"rdi": b"\xbf", "rsi": b"\xbe"}
DISPLACEMENT = struct.Struct("<i")


@dataclass(frozen=True, slots=True)
class Bql:
    """Where the lock is, and how that is known. Address 0: not found."""

    address: int = 0
    how: str = ""


def find_bql(symbols: Symbols, waits: Iterable[FutexWait], comms: dict[int, str]) -> Bql:
    """Return the lock's address by its symbol, by the code of what takes and drops it, or by who waits for it."""
    best = symbols.main.named_by if symbols.main else None
    for name in VARIABLES if best and best.has_symtab else ():
        for address in symbols.find(name):
            if _is_data(symbols, address):
                return Bql(address, f"symbol {name}")
    if bql := _by_code(symbols):
        return bql
    return _by_waiters(symbols, waits, comms)


def _by_code(symbols: Symbols) -> Bql | None:
    """Take the variable that most accessors hand on: the mutex is theirs all, a format string or a counter is not."""
    for generation in ACCESSORS:
        voters: dict[int, list[str]] = {}
        for name, register in generation:
            for function in symbols.find(name)[:1]:
                code = symbols.read(function, _size(symbols, function))
                for address in set(_handed_on(code, function, register)):
                    if _is_data(symbols, address):
                        voters.setdefault(address, []).append(name)
        ranking = sorted(voters.items(), key=lambda item: -len(item[1]))
        if ranking and (len(ranking) == 1 or len(ranking[0][1]) > len(ranking[1][1])):
            return Bql(ranking[0][0], f"code of {', '.join(ranking[0][1])}")
    return None


def _handed_on(code: bytes, start: int, register: str) -> Iterator[int]:
    for pattern, relative in ((LEA[register], True), (MOVE[register], False)):
        position = code.find(pattern)
        while position >= 0 and position + len(pattern) + 4 <= len(code):
            (value,) = DISPLACEMENT.unpack_from(code, position + len(pattern))
            yield start + position + len(pattern) + 4 + value if relative else value & 0xFFFFFFFF
            position = code.find(pattern, position + 1)


def _by_waiters(symbols: Symbols, waits: Iterable[FutexWait], comms: dict[int, str]) -> Bql:
    """Take the static mutex that virtual CPUs wait for: no other mutex of QEMU's own data is taken by all of them."""
    votes = Counter(
        wait.address
        for wait in waits
        if is_mutex(wait) and VCPU.fullmatch(comms.get(wait.tid, "")) and _is_data(symbols, wait.address)
    )
    if not votes:
        return Bql()
    address, count = votes.most_common(1)[0]
    return Bql(address, f"the static mutex that {count} vCPU thread{'s wait' if count > 1 else ' waits'} for")


def is_mutex(wait: FutexWait) -> bool:
    """Return whether the sleep is glibc's on a contended mutex: FUTEX_WAIT_PRIVATE while the word is 2."""
    return wait.operation == 0x80 and wait.value == 2


def _size(symbols: Symbols, function: int) -> int:
    symbol = symbols.function(function, called=False)
    return min(symbol.size, MOST_CODE) if symbol and symbol.address == function else 0


def _is_data(symbols: Symbols, address: int) -> bool:
    """Return whether the address lies in the QEMU binary's own writable data."""
    main = symbols.main
    return main is not None and any(start <= address < end for start, end in _writable(main))


def _writable(image: ElfImage) -> Iterator[tuple[int, int]]:
    yield from image.zeroed
    for segment in image.file.elf.segments if image.file else ():
        if segment.writable:
            yield image.bias + segment.address, image.bias + segment.address + segment.size
