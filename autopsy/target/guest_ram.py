"""Tells the guest's memory from QEMU's own by the shape of the memory map, which grows with nothing that a guest does.

The kernel's own mark (VmFlags `dc`, MADV_DONTFORK) stands in smaps alone, and to read that is to walk every page that
the guest has ever touched, while whatever the VM maps, unmaps or faults in waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from autopsy.linux.mappings import PAGE, Mapping, modules
from autopsy.target.command_line import Option, last, settings

ALIGNMENT = 2 << 20  # QEMU_VMALLOC_ALIGN of an x86 host, to which qemu_anon_ram_alloc() aligns whatever its size
ARENA = 64 << 20  # glibc's HEAP_MAX_SIZE: an arena fills one such window, what it has not used yet without any right
COROUTINE_STACK = 1 << 20
# The smallest piece that is taken for guest RAM because that of the command line was not found.
DOUBTFUL = 1 << 20
# For a command line that is not known: no memory map accounts for so much, so whatever may be guest RAM counts as that.
UNTOLD = (1 << 62,)

BY_SIZE = "guest RAM: of a size that the command line gives it"
BY_SHAPE = "guest RAM: aligned to 2 MiB, with a guard page behind it, as QEMU lays out no other memory"
IN_DOUBT = "it may be guest RAM: that of the command line was not found for certain"

_UNITS = {"B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}


def sizes(given: Iterable[Option]) -> tuple[int, ...]:
    """Return the sizes of guest RAM that a command line tells, that of `-m` first (0 where there is none)."""
    known = tuple(given)
    whole = settings(last(known, "m"), implied="size").get("size", "") if last(known, "m") else ""
    objects = (settings(option.value, implied="qom-type") for option in known if option.name == "object")
    return (
        _bytes(whole, "M"),
        *(
            _bytes(memory.get("size", ""), "B")
            for memory in objects
            if memory.get("qom-type", "").startswith("memory-")
        ),
    )


def guest_ram(mappings: Sequence[Mapping], told_sizes: Sequence[int] = ()) -> dict[int, str]:
    """Return the start of each writable mapping that is or may be guest RAM, and why it is taken for that.

    `told_sizes` is what `sizes` returns. In doubt a mapping is guest RAM: what is left out of a core by mistake is
    missed, and what is read by mistake is a stranger's. Shared memory and files that are no program are never
    evidence, and are returned only where their size tells what they are.
    """
    programs = {mapping.start for mapping in modules(mappings)}
    writable = [area for area in mappings if area.permissions.startswith("rw-") and area.start not in programs]
    known = dict.fromkeys(_of_sizes(writable, {size for size in told_sizes if size}), BY_SIZE)
    shaped = [below for below, above in pairwise(mappings) if _has_guard_behind(below, above)]
    stacks = set(stacks_of(mappings))
    arenas = arenas_of(mappings)
    for mapping in shaped:
        if mapping.start % ALIGNMENT == 0 and mapping.start not in stacks and mapping.start not in arenas:
            known.setdefault(mapping.start, BY_SHAPE)
    if told_sizes and told_sizes[0] > _accounted_for(writable, known):
        for mapping in writable:
            if _nameless(mapping) and mapping.size >= DOUBTFUL and mapping.start not in stacks | arenas:
                known.setdefault(mapping.start, IN_DOUBT)
    return known


def _bytes(text: str, unit: str) -> int:
    """Return a size as QEMU reads it: a number, with a letter of 1,024s behind it or else `unit`."""
    number, letter = (text[:-1], text[-1:].upper()) if text[-1:].upper() in _UNITS else (text, unit)
    try:
        return max(0, int(float(number) * _UNITS[letter])) if not number.isdecimal() else int(number) * _UNITS[letter]
    except (ValueError, OverflowError):
        return 0


def _nameless(mapping: Mapping) -> bool:
    return mapping.anonymous and not mapping.path and mapping.permissions.startswith("rw-")


def _of_sizes(writable: Sequence[Mapping], wanted: set[int]) -> Iterable[int]:
    """Yield the mappings that are, alone or with those right above them, as large as guest RAM is said to be.

    One block becomes several mappings where the kernel was told something of a part of it (a page that failed).
    """
    limit = max(wanted, default=0)
    for first, mapping in enumerate(writable):
        if mapping.size in wanted and (not _nameless(mapping) or mapping.start % ALIGNMENT == 0):
            yield mapping.start
        if mapping.start % ALIGNMENT or not _nameless(mapping):
            continue
        end = mapping.end
        for last_one in range(first + 1, len(writable)):
            above = writable[last_one]
            if above.start != end or not _nameless(above) or above.end - mapping.start > limit:
                break
            end = above.end
            if end - mapping.start in wanted:
                yield from (mapping.start for mapping in writable[first : last_one + 1])


def _forbidden(mapping: Mapping) -> bool:
    return mapping.permissions.startswith("---")


def _has_guard_behind(mapping: Mapping, above: Mapping) -> bool:
    return _nameless(mapping) and _forbidden(above) and mapping.end == above.start


def stacks_of(mappings: Sequence[Mapping]) -> Iterable[int]:
    """Yield what lies right above one page that nobody may touch: a thread's stack, or a coroutine's.

    Guest RAM begins where it is aligned, with nothing below it that QEMU mapped for it; what happens to end there is
    an arena's unused rest.
    """
    for number, (guard, mapping) in enumerate(pairwise(mappings)):
        lies_above = guard.end == mapping.start and _forbidden(guard) and guard.size == PAGE
        rest_of_an_arena = guard.end % ARENA == 0 and number > 0 and mappings[number - 1].end == guard.start
        if lies_above and _nameless(mapping) and not (rest_of_an_arena and mapping.size != COROUTINE_STACK):
            yield mapping.start


def arenas_of(mappings: Sequence[Mapping]) -> set[int]:
    """Return the parts of glibc's arenas: windows of 64 MiB that begin with what is used and end with what is not."""
    arenas: set[int] = set()
    parts: list[Mapping] = []
    for mapping in mappings:
        follows = bool(parts) and parts[-1].end == mapping.start
        if _nameless(mapping) and (follows or mapping.start % ARENA == 0):
            if mapping.start % ARENA == 0:
                parts = []
            parts.append(mapping)
            continue
        if follows and _forbidden(mapping):
            window = parts[0].start + ARENA
            if mapping.start < window <= mapping.end:
                arenas.update(part.start for part in parts)
        parts = []
    return arenas


def _accounted_for(writable: Iterable[Mapping], known: dict[int, str]) -> int:
    """Return how much memory is known for guest RAM, or is a file's or shared, as guest RAM that is not private is."""
    return sum(
        mapping.size
        for mapping in writable
        if mapping.start in known or mapping.inode or mapping.permissions.endswith("s")
    )
