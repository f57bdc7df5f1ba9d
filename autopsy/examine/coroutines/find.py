"""Find QEMU's coroutines in frozen memory, without symbols.

A request that waits for a throttle timer, an NBD server, an AIO completion or another request has no thread: all that
is left of it is a coroutine whose registers lie in a jmpbuf on the heap. The recipe:

- qemu_alloc_stack() maps 1 MiB and a guard page, and the coroutine keeps (stack, stack_size) as two words in a row;
- struct Coroutine lies before these words, its sigjmp_buf behind them;
- glibc mangles rbp, rsp and pc in a jmpbuf with a secret that the kernel left in memory too, at AT_RANDOM + 8.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterator
from typing import Literal

import msgspec

from autopsy.bundle.records import Coroutine, LeftOut
from autopsy.dataclass import dataclass
from autopsy.examine.core.reader import HIGHEST, PAGE, WORD, Core, CoreError, Registers
from autopsy.examine.core.symbols import Symbols

STACK_SIZE = (1 << 20) + PAGE  # COROUTINE_STACK_SIZE and the guard page, as qemu_alloc_stack() rounds it
MOST_COROUTINES = 65536
MOST_CANDIDATES = 4 << 20  # places where a stack's size lies; a QEMU of 10,000 coroutines has twice as many
MOST_SCANNED = 4 << 30  # a core holds no guest RAM; one that claims more is no core of ours
AT_RANDOM = 25
TCB_POINTER_GUARD = 0x30
MOST_COMPARED = 32 << 10  # a request uses some 2 KiB of its stack

# struct Coroutine is 11 words, the same from QEMU 5.2 to 10.2; the order is that in which _read() names them.
HEADER = struct.Struct("<11Q")
JMPBUF = struct.Struct("<8Q")  # glibc x86-64: rbx, rbp*, r12, r13, r14, r15, rsp*, pc*
LAYOUTS: tuple[tuple[Literal["ucontext", "ucontext-safestack"], int], ...] = (
    ("ucontext", 16),  # from `stack` to `env`; CoroutineSigAltStack is laid out alike
    ("ucontext-safestack", 32),  # CONFIG_SAFESTACK puts unsafe_stack and unsafe_stack_size between
)
# An ended coroutine waits in the pool inside qemu_coroutine_switch(), called by coroutine_trampoline() at the very top
# of its stack: it uses 0x50 bytes and returns into QEMU once. The shallowest that waits for something, the idle QMP
# dispatcher, uses 0xc0 and returns into QEMU three times.
POOLED_DEPTH = 0x100
POOLED_RETURNS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A coroutine as memory tells of it, with the registers that its jmpbuf holds."""

    coroutine: Coroutine
    registers: Registers

    @property
    def top(self) -> int:
        """Return the first address above its stack."""
        return self.coroutine.stack + self.coroutine.stack_size


def find_coroutines(core: Core, symbols: Symbols, left_out: list[LeftOut] | None = None) -> tuple[Saved, ...]:
    """Return every coroutine of the process, by address, each stack's most plausible owner only.

    What a limit kept from being found is added to `left_out`.
    """
    limits: list[LeftOut] = [] if left_out is None else left_out
    guards = tuple(pointer_guards(core))
    occupied = sorted(thread.registers.rsp for thread in core.threads)
    imports = symbols.main.file.elf.imports if symbols.main and symbols.main.file else b""
    sigaltstack = switches_by_signal(imports)
    by_stack: dict[int, Saved] = {}
    for place in _stack_words(core, limits):
        saved = _read(core, symbols, place, guards)
        if saved is None:
            continue
        known = by_stack.get(saved.coroutine.stack)
        if known is None or (known.coroutine.state == "unclear" != saved.coroutine.state):
            by_stack[saved.coroutine.stack] = saved
        if len(by_stack) >= MOST_COROUTINES:
            limits.append(_more(f"{MOST_COROUTINES} were read"))
            break
    settled = (_settled(core, symbols, saved, occupied, sigaltstack=sigaltstack) for saved in by_stack.values())
    return tuple(sorted(settled, key=lambda saved: saved.coroutine.address))


def switches_by_signal(imports: bytes) -> bool:
    """Return whether QEMU was built with coroutine-sigaltstack: it imports what makes a stack there, and only that."""
    return b"\0sigaltstack\0" in imports and b"\0makecontext\0" not in imports


def pointer_guards(core: Core) -> Iterator[int]:
    """Yield the secret that glibc mangles jmpbufs with, from where it was born and from where each thread keeps it."""
    seen = set()
    places = [core.auxv[AT_RANDOM] + 8] if AT_RANDOM in core.auxv else []
    places += [thread.registers.fs_base + TCB_POINTER_GUARD for thread in core.threads[:4] if thread.registers.fs_base]
    for place in places:
        try:
            guard = core.word(place)
        except CoreError:
            continue
        if guard not in seen:
            seen.add(guard)
            yield guard


def demangle(value: int, guard: int) -> int:
    """Return what glibc's PTR_MANGLE hid on x86-64: rotate right by 17, then exclusive-or."""
    return ((value >> 17) | (value << 47) & (HIGHEST - 1)) ^ guard


def mangle(value: int, guard: int) -> int:
    """Return what glibc's PTR_MANGLE makes of a pointer on x86-64."""
    mixed = value ^ guard
    return ((mixed << 17) & (HIGHEST - 1)) | (mixed >> 47)


def _more(why: str) -> LeftOut:
    return LeftOut(what="there are more coroutines than are told", why=why, requests=True)


def _stack_words(core: Core, limits: list[LeftOut]) -> Iterator[int]:
    """Yield every address whose word is the lowest address of a guarded stack, and the next word its size."""
    needle = WORD.pack(STACK_SIZE)
    left = MOST_SCANNED
    candidates = MOST_CANDIDATES
    for extent in core.one_after_another():
        left -= extent.end - extent.start
        if left < 0:
            limits.append(_more(f"{MOST_SCANNED >> 30} GiB of memory were searched"))
            return
        for address in extent.find(needle):
            candidates -= 1
            if not candidates:
                limits.append(_more(f"{MOST_CANDIDATES} places were looked at"))
                return
            if address % 8 == 0:
                try:
                    stack = core.word(address - 8)
                except CoreError:
                    continue
                if _is_guarded(core, stack):
                    yield address - 8


def _is_guarded(core: Core, stack: int) -> bool:
    """Return whether a page that cannot be read lies at `stack`, and a writable mapping above it."""
    if not stack or stack % PAGE:
        return False
    above = core.load_at(stack + STACK_SIZE - PAGE)
    if above is None or not above.writable:
        return False
    below = core.load_at(stack)
    if below is None or not below.readable:
        return True
    # gdb's own gcore reads through protections: there a guard page is one of zeros.
    try:
        return not any(core.read(stack, PAGE))
    except CoreError:
        return False


def _read(core: Core, symbols: Symbols, place: int, guards: tuple[int, ...]) -> Saved | None:
    try:
        stack = core.word(place)
        header = HEADER.unpack(core.read(place - HEADER.size, HEADER.size))
        body = core.read(place, 32 + JMPBUF.size)
    except CoreError:
        return None
    entry, argument, caller, _, locks_held, context, scheduled, *_ = header
    clear: tuple[Literal["ucontext", "ucontext-safestack"], Registers] | None = None
    for backend, offset in LAYOUTS:
        for guard in guards:
            registers = _registers(body, offset, guard)
            if stack + PAGE <= registers.rsp < stack + STACK_SIZE and symbols.is_code(registers.rip):
                clear = clear or (backend, registers)
    if clear is None and not symbols.is_code(entry):
        return None  # the two words lie in a dead stack frame or a freed block: no coroutine
    backend, registers = clear or ("ucontext", _registers(body, LAYOUTS[0][1], 0))
    return Saved(
        registers=registers,
        coroutine=Coroutine(
            address=place - HEADER.size,
            stack=stack,
            stack_size=STACK_SIZE,
            state="parked" if clear else "unclear",
            pc=registers.rip if clear else 0,
            sp=registers.rsp if clear else 0,
            entry=entry,
            entry_argument=argument,
            caller=caller,
            context=context,
            locks_held=locks_held,
            scheduled_by=symbols.string(scheduled, 64) if scheduled else "",
            backend=backend,
            why_unclear="" if clear else "its jmpbuf does not lead into its stack",
        ),
    )


def context_of(core: Core, symbols: Symbols, address: int) -> Registers | None:
    """Return the registers that a coroutine of any kind saved, a thread's leader too; None where none can be told."""
    try:
        body = core.read(address + HEADER.size, 32 + JMPBUF.size)
    except CoreError:
        return None
    for _, offset in LAYOUTS:
        for guard in pointer_guards(core):
            registers = _registers(body, offset, guard)
            if symbols.is_code(registers.rip) and core.holds(registers.rsp, WORD.size):
                return registers
    return None


def _registers(body: bytes, offset: int, guard: int) -> Registers:
    rbx, rbp, r12, r13, r14, r15, rsp, rip = JMPBUF.unpack_from(body, offset)
    return Registers(*(0,) * 27)._replace(
        rbx=rbx,
        rbp=demangle(rbp, guard),
        r12=r12,
        r13=r13,
        r14=r14,
        r15=r15,
        rsp=demangle(rsp, guard),
        rip=demangle(rip, guard),
        orig_rax=HIGHEST - 1,
        cs=0x33,
        ss=0x2B,
        eflags=0x202,
    )


def returns(core: Core, symbols: Symbols, saved: Saved) -> tuple[tuple[int, int], ...]:
    """Return (place below the top, word) of every word on its stack that leads into code: what unwinding depends on.

    A stack that is deeper than any request's tells of nothing but its address, as if it were like no other.
    """
    start = saved.coroutine.sp & -8
    if saved.top - start > MOST_COMPARED:
        return ((saved.top - start, saved.coroutine.address),)
    try:
        data = core.read(start, saved.top - start)
    except CoreError:
        return ()
    words = memoryview(data).cast("Q")
    size = len(words)
    return tuple((size - index, word) for index, word in enumerate(words) if word > PAGE and symbols.is_code(word))


def _settled(core: Core, symbols: Symbols, saved: Saved, occupied: list[int], *, sigaltstack: bool) -> Saved:
    """Return the coroutine with its state told from the links it holds and the stack it uses."""
    coroutine = saved.coroutine
    state = coroutine.state
    if coroutine.caller or bisect_left(occupied, coroutine.stack) != bisect_left(occupied, saved.top):
        state = "running"
    elif state == "parked" and saved.top - coroutine.sp <= POOLED_DEPTH and not coroutine.scheduled_by:
        words = [word for _, word in returns(core, symbols, saved) if symbols.image_at(word) is symbols.main]
        # A word that is a function's first byte is a pointer to it in a saved register, not a way back into it.
        into_qemu = [word for word in words if not symbols.is_start(word)]
        state = "pooled" if len(into_qemu) < POOLED_RETURNS else "parked"
    backend = "sigaltstack" if sigaltstack and coroutine.backend == "ucontext" else coroutine.backend
    return Saved(registers=saved.registers, coroutine=msgspec.structs.replace(coroutine, state=state, backend=backend))
