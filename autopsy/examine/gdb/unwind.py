"""Unwind every thread and every parked coroutine in one run of gdb.

gdb is given a core of our own making: the frozen stacks, and one thread for each thread and each parked coroutine. Only
modules that some stack leads into are loaded, which is most of what makes it quick.
"""

from __future__ import annotations

import os
import struct
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from autopsy.bundle.records import Coroutine, Frame, ThreadStack
from autopsy.dataclass import dataclass
from autopsy.examine.core import synthetic
from autopsy.examine.core.extent import CoreExtent
from autopsy.examine.core.find_files import DELETED, installed_debug_files
from autopsy.examine.core.reader import NT_AUXV, NT_FILE, PAGE, Core, CoreError, CoreThread
from autopsy.examine.core.symbols import ElfImage, Symbols
from autopsy.examine.coroutines.entered import contexts
from autopsy.examine.coroutines.find import Saved, returns
from autopsy.examine.gdb import without_gdb
from autopsy.examine.gdb.backtrace import Block, blocks, frames
from autopsy.examine.gdb.mi import NoGdb
from autopsy.examine.gdb.printed import EarlyGdb, Printed, print_stacks
from autopsy.linux.mappings import printable

AT_SYSINFO_EHDR = 33
RED_ZONE = 256
MOST_STACK = 1 << 20
FIRST_LWP = 1 << 28  # beyond any thread id that Linux gives (PID_MAX_LIMIT is 1 << 22)
TRAMPOLINE = "coroutine_trampoline"
ENTERED_FROM = "(it is in a coroutine, which it entered from here:)"
ENDED_FRAMES = 2  # qemu_coroutine_switch() and the trampoline

GDB_SHARE = 0.75  # of the time; without it all of 2,000 stacks take a second


@dataclass(frozen=True, slots=True)
class Parked:
    """A parked coroutine and the snapshot whose memory holds its stack."""

    core: Core
    saved: Saved


@dataclass(frozen=True, slots=True, kw_only=True)
class Unwound:
    """The stacks: `backtrace` is gdb's own words for the threads, `coroutines` the frames by coroutine address."""

    backtrace: str
    threads: tuple[ThreadStack, ...]
    coroutines: Mapping[int, tuple[Frame, ...]]
    log: bytes
    note: str


def unwind(
    core: Core,
    symbols: Symbols,
    parked: Iterable[Parked],
    *,
    comms: Mapping[int, str],
    scratch: Path,
    ends_at: float,
    saved: Sequence[Saved] = (),
    with_threads: bool = True,
    early: EarlyGdb,
    meanwhile: Callable[[], None] = lambda: None,
) -> Unwound:
    """Return the frames of every thread and coroutine.

    What gdb does not print, for there is none, or it ends by itself, refuses, or takes longer than its share of the
    time, is unwound all the same, by the unwind tables alone, and marked so. `meanwhile` is called while gdb loads what
    it needs, for each that is started.

    `saved` are all coroutines: the stack of a thread that is in one goes on where it entered it.
    """
    began = time.monotonic()
    gdb_ends_at = began + (ends_at - began) * GDB_SHARE
    standing = core.threads if with_threads else ()
    left = [(tid, registers) for tid, several in contexts(core, symbols, saved).items() for registers in several]
    groups: dict[tuple[object, ...], list[Parked]] = {}
    for member in parked:
        groups.setdefault(_signature(symbols, member), []).append(member)
    alike = list(groups.values())
    pieces = [_stack(core, thread.registers.rsp, MOST_STACK) for thread in standing]
    pieces += [_stack(group[0].core, group[0].saved.registers.rsp, group[0].saved.top) for group in alike]
    pieces += [_stack(core, registers.rsp, MOST_STACK) for _, registers in left]
    pieces.append(_vdso(core))
    extents = _joined(piece for several in pieces for piece in several)
    threads = list(standing)
    threads += [CoreThread(FIRST_LWP + index, group[0].saved.registers) for index, group in enumerate(alike)]
    threads += [CoreThread(FIRST_LWP + len(alike) + index, registers) for index, (_, registers) in enumerate(left)]
    scratch = scratch.absolute()  # gdb looks at files from a directory of its own
    path = scratch / "stacks.core"
    path.unlink(missing_ok=True)
    images = led_into(symbols, extents, threads)
    links = link(images, scratch)
    synthetic.write(path, threads, extents, notes(core, links))
    at_hand = {thread.registers.rip for thread in threads}
    fewer = [image for image in images if any(image.start <= pc < image.end for pc in at_hand)]
    loads = tuple((f"core-file {path}", *commands(some, links, scratch)) for some in (images, fewer))
    try:
        printed = print_stacks(early, loads, scratch, gdb_ends_at, len(threads), meanwhile=meanwhile)
    except NoGdb as error:
        printed = Printed(trouble=f"gdb {error.cause}", remedy=error.remedy)
    by_lwp = {block.lwp: block for block in blocks(printed.text)}
    note = printed.trouble
    doubtful = [thread.tid for thread in threads if thread.tid not in by_lwp or thread.tid in printed.cut]
    if doubtful:
        text = without_gdb.backtrace(threads, extents, symbols, ends_at, only=frozenset(doubtful))
        ours = {block.lwp: block for block in blocks(text) if _tells_more(block, by_lwp.get(block.lwp))}
        by_lwp |= ours
        note = _in_words(printed, sum(tid in ours for tid in doubtful), len(threads))
    before: dict[int, list[Block]] = {}
    for index, (tid, _) in enumerate(left):
        if block := by_lwp.get(FIRST_LWP + len(alike) + index):
            before.setdefault(tid, []).append(block)
    backtrace, stacks = _threads(standing, symbols, by_lwp, comms, note, before=before)
    coroutine_frames: dict[int, tuple[Frame, ...]] = {}
    for index, group in enumerate(alike):
        if block := by_lwp.get(FIRST_LWP + index):
            shared = _inside(frames(block, symbols)[0], symbols)
            coroutine_frames.update((member.saved.coroutine.address, shared) for member in group)
    return Unwound(backtrace=backtrace, threads=stacks, coroutines=coroutine_frames, log=printed.log, note=note)


def _tells_more(ours: Block, by_gdb: Block | None) -> bool:
    return by_gdb is None or len({frame.pc for frame in ours.frames}) > len({frame.pc for frame in by_gdb.frames})


def _in_words(printed: Printed, ours: int, stacks: int) -> str:
    """Return what became of gdb, and how many of the stacks are our own."""
    note = printed.trouble
    if ours:
        which = "" if ours == stacks else f"{ours} of {stacks} stacks "
        note = f"{note or 'gdb printed nothing for some'}: {which}{without_gdb.NOTE}"
    return f"{note}; `{printed.remedy}` mends it" if printed.remedy else note


def led_into(symbols: Symbols, extents: Iterable[CoreExtent], threads: Iterable[CoreThread]) -> list[ElfImage]:
    """Return the images that a pc or a word on a stack points into: no frame can lie in another."""
    words = {thread.registers.rip for thread in threads}
    for extent in extents:
        skip = -extent.start % 8
        size = (extent.end - extent.start - skip) & -8
        data = extent.source[extent.offset + skip : extent.offset + skip + size]
        words.update(memoryview(data).cast("Q"))
    ordered = sorted(words)
    return [
        image
        for image in symbols.images
        if image.file and any(bisect_left(ordered, start) != bisect_left(ordered, end) for start, end in image.code)
    ]


def link(images: Iterable[ElfImage], scratch: Path) -> dict[str, Path]:
    """Give each image's file, and its debug file, a name in scratch that needs no quoting; return them by path.

    A deleted file, one in another mount namespace, and one that somebody else holds the place of, are all found so.
    """
    folder = scratch / "modules"
    debug = scratch / "debug" / ".build-id"
    names: dict[str, Path] = {}
    for number, image in enumerate(images):
        if image.file is None:
            continue
        letters = [
            letter
            for letter in image.path.rsplit("/", 1)[-1]
            if letter.isascii() and (letter.isalnum() or letter in "-_.+")
        ]
        names[image.path] = folder / str(number) / ("".join(letters) or "module")
        _symlink(names[image.path], image.file.path)
        if image.debug and image.build_id:
            _symlink(debug / image.build_id[:2] / f"{image.build_id[2:]}.debug", image.debug.path)
    return names


def commands(images: Iterable[ElfImage], links: Mapping[str, Path], scratch: Path) -> list[str]:
    """Return the gdb commands that load these images at their addresses."""
    folders = (scratch / "debug", *installed_debug_files())
    lines = [f"set debug-file-directory {':'.join(map(str, folders))}"]
    lines += [f"add-symbol-file {links[image.path]} -o {image.bias:#x}" for image in images if image.path in links]
    return lines


def notes(core: Core, links: Mapping[str, Path]) -> list[tuple[int, bytes]]:
    """Return the auxiliary vector and the mapped files, by their names in scratch, for a core of our making."""
    linked = [(part, links.get(printable(part.path.removesuffix(DELETED)))) for part in core.files]
    parts = [(part, link) for part, link in linked if link is not None]
    ranges = [struct.pack("<QQQ", part.start, part.end, part.offset // PAGE) for part, _ in parts]
    paths = [os.fsencode(link) + b"\0" for _, link in parts]
    mapped = struct.pack("<QQ", len(parts), PAGE) + b"".join(ranges) + b"".join(paths)
    return [*[note for note in core.note_bytes if note[0] == NT_AUXV][:1], (NT_FILE, mapped)]


def _symlink(name: Path, target: Path) -> None:
    name.parent.mkdir(parents=True, exist_ok=True)
    name.unlink(missing_ok=True)
    name.symlink_to(target.absolute())


def _threads(
    threads: Iterable[CoreThread],
    symbols: Symbols,
    by_lwp: Mapping[int, Block],
    comms: Mapping[int, str],
    note: str,
    *,
    before: Mapping[int, Sequence[Block]],
) -> tuple[str, tuple[ThreadStack, ...]]:
    lines: list[str] = []
    stacks: list[ThreadStack] = []
    for thread in threads:
        block = by_lwp.get(thread.tid)
        if block is None:
            stacks.append(bare(thread, symbols, comms, note or "gdb printed nothing for it"))
            continue
        if lines:
            lines.append("")
        line = len(lines) + 1
        lines += block.lines
        pieces = [block, *before.get(thread.tid, ())]
        for entrance in pieces[1:]:
            lines += [ENTERED_FROM, *entrance.lines[1:]]
        unwound = [frames(piece, symbols) for piece in pieces]
        inner = [frame for piece, _ in unwound[:-1] for frame in _inside(piece, symbols)]
        outer, doubt = unwound[-1]
        named, cut_short = (*inner, *outer), doubt or pieces[-1].cut_short
        stacks.append(
            ThreadStack(tid=thread.tid, comm=comms.get(thread.tid, ""), frames=named, line=line, cut_short=cut_short)
        )
    return "\n".join([*lines, ""]), tuple(stacks)


def bare(thread: CoreThread, symbols: Symbols, comms: Mapping[int, str], why: str) -> ThreadStack:
    """Return the stack of a thread that was not unwound: where it stood."""
    frame = symbols.frame(thread.registers.rip, called=False)
    return ThreadStack(tid=thread.tid, comm=comms.get(thread.tid, ""), frames=(frame,), cut_short=why)


def with_frames(coroutine: Coroutine, by_address: Mapping[int, tuple[Frame, ...]], symbols: Symbols) -> Coroutine:
    """Return the coroutine with the frames that were found for it, if any were.

    One in which coroutine_trampoline() itself switches away has ended, and waits in the pool.
    """
    if coroutine.address not in by_address or coroutine.state == "pooled":
        return coroutine
    stack = by_address[coroutine.address]
    in_qemu = {frame.pc for frame in stack if symbols.main and frame.module == symbols.main.path}
    whole = symbols.main is not None and symbols.main.file is not None
    if whole and len(in_qemu) == len({frame.pc for frame in stack}) == ENDED_FRAMES and not coroutine.scheduled_by:
        return msgspec.structs.replace(coroutine, state="pooled", frames=())
    return msgspec.structs.replace(coroutine, frames=stack)


def _inside(all_frames: tuple[Frame, ...], symbols: Symbols) -> tuple[Frame, ...]:
    """Return the frames up to coroutine_trampoline: the outermost of QEMU's own, nameless in a stripped binary.

    What lies beyond it is the context that makecontext() made up.
    """
    last = 0
    for index, frame in enumerate(all_frames):
        if frame.function == TRAMPOLINE:
            return all_frames[: index + 1]
        if symbols.main and frame.module == symbols.main.path:
            last = index
    return all_frames[: last + 1]


def _signature(symbols: Symbols, parked: Parked) -> tuple[object, ...]:
    """Return what decides how a stack unwinds: coroutines that share it share their frames."""
    saved = parked.saved
    return (saved.coroutine.pc, saved.top - saved.coroutine.sp, returns(parked.core, symbols, saved))


def _stack(core: Core, sp: int, end: int) -> list[CoreExtent]:
    start = max(0, (sp - RED_ZONE) & -8)
    end = sp + MOST_STACK if end <= MOST_STACK else end
    return [_clipped(extent, start, end) for extent in core.extents_within(start, end)]


def _vdso(core: Core) -> list[CoreExtent]:
    base = core.auxv.get(AT_SYSINFO_EHDR, 0)
    try:
        core.word(base)
    except CoreError:
        return []
    return [_clipped(extent, base, base + (8 << 12)) for extent in core.extents_within(base, base + (8 << 12))]


def _clipped(extent: CoreExtent, start: int, end: int) -> CoreExtent:
    first = max(start, extent.start)
    return CoreExtent(first, min(end, extent.end), extent.offset + first - extent.start, extent.source)


def _joined(pieces: Iterable[CoreExtent]) -> list[CoreExtent]:
    """Return the pieces by address, without the bytes that an earlier one has already given."""
    joined: list[CoreExtent] = []
    free_from = 0
    for piece in sorted(pieces, key=lambda piece: (piece.start, -piece.end)):
        if piece.end <= free_from:
            continue
        joined.append(_clipped(piece, max(piece.start, free_from), piece.end))
        free_from = piece.end
    return joined
