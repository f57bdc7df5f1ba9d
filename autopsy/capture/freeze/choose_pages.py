"""Chooses which memory of QEMU goes into the core: its heap, data and stacks, never the guest's RAM."""

from __future__ import annotations

from enum import Enum

from autopsy.bundle.records import Region
from autopsy.capture.freeze.core_cap import Wanted, within, worth
from autopsy.dataclass import dataclass
from autopsy.linux.files import read_kernel
from autopsy.linux.mappings import PAGE, Mapping, _region, modules, parse_maps
from autopsy.linux.tasks.pagemap import IN_MEMORY, OWN, SWAPPED_OUT, Run, runs, slices
from autopsy.linux.tasks.priority import Unpreempted
from autopsy.target.guest_ram import COROUTINE_STACK, arenas_of, guest_ram, stacks_of

CAP_BYTES = 512 << 20
MOST_MAPS = 128 << 20


MOST_RING_BYTES = 1 << 20


HEADER_BYTES = PAGE  # an ELF file's own headers and, in practice, its build-id note


class Take(Enum):
    """Which pages of a mapping are evidence."""

    HELD = "whatever is in memory or swapped out"
    OWN = "what of it is no longer the file's"
    HEADER = "the ELF header's page"
    RING = "the whole, which the kernel keeps in memory"


@dataclass(frozen=True, slots=True)
class Choice:
    """What is copied, in order of address, and the writable mappings that are not, with the reason.

    `beyond_cap` is evidence that was given up, for the core would be too large.
    """

    wanted: tuple[Wanted, ...]
    left_out: tuple[Region, ...]
    beyond_cap: tuple[Region, ...] = ()
    coroutine_stacks: int = 0


def address_space(folder: str, ram_sizes: tuple[int, ...]) -> tuple[tuple[Mapping, ...], dict[int, str]]:
    """Return the mappings of the process whose /proc/PID is `folder`, and which of them are or may be guest RAM.

    `ram_sizes` are what the process tells of it. To read the map can hang on its lock, and takes no longer with more
    memory in it.

    Raises:
        OSError: as open(2) and read(2) give it.
    """
    with Unpreempted():
        maps = read_kernel(f"{folder}/maps", MOST_MAPS)
    mappings = parse_maps(maps)
    return mappings, guest_ram(mappings, ram_sizes)


def choose(
    mappings: tuple[Mapping, ...], ram: dict[int, str], pagemap: int, memory: int, cap: int = CAP_BYTES
) -> Choice:
    """Decide what is evidence, and look in pagemap (a descriptor) which pages of it there are.

    `ram` has the starts of what is or may be guest RAM, and why: pagemap is not even read there. A page that pagemap
    says is absent is never in a run. Beyond `cap` bytes what matters least is given up; `memory` tells what leads
    where.
    """
    of_modules = {module.start for module in modules(mappings)}
    wanted: list[Wanted] = []
    left_out: list[Region] = []
    with Unpreempted() as ahead:
        for mapping in mappings:
            take = _take(mapping, ram.get(mapping.start, ""), is_module=mapping.start in of_modules)
            if isinstance(take, str):
                if take:
                    left_out.append(_region(mapping, take))
                continue
            pages = _look(mapping, take, pagemap, ahead)
            if pages.size:
                wanted.append(pages)
    stacks, arenas = frozenset(stacks_of(mappings)), frozenset(arenas_of(mappings))
    worths = [worth(want.mapping, stacks, arenas) for want in wanted]
    kept, beyond_cap = within(wanted, worths, cap, memory)
    alike = sum(want.mapping.start in stacks and want.mapping.size == COROUTINE_STACK for want in wanted)
    return Choice(tuple(kept), tuple(left_out), tuple(beyond_cap), alike)


def _take(mapping: Mapping, ram: str, *, is_module: bool) -> Take | str:  # noqa: PLR0911 - one case a line
    """Return what to take of a mapping, or why nothing (empty: it is of no interest)."""
    if mapping.path.startswith("/[aio]"):
        return Take.RING if mapping.size <= MOST_RING_BYTES else "larger than any AIO ring"
    if mapping.path == "[vdso]":
        return Take.HELD
    if "w" in mapping.permissions:
        if why := ram or _refused(mapping):
            return why
        if mapping.inode and not is_module:
            return "a file's data, and the file is no program"
        return Take.HELD
    if is_module and "x" not in mapping.permissions and "p" in mapping.permissions:
        return Take.OWN if mapping.offset else Take.HEADER
    if is_module and not mapping.offset:  # a file linked without a separate code segment begins with its code
        return Take.HEADER
    return ""


def _refused(mapping: Mapping) -> str:
    if "x" in mapping.permissions:
        return "generated code"
    if "s" in mapping.permissions:
        return "shared memory"
    return ""


def _look(mapping: Mapping, take: Take, pagemap: int, ahead: Unpreempted) -> Wanted:
    """Return what there is of a mapping that is worth taking."""
    match take:
        case Take.RING:
            # The one exception to pagemap's word: the kernel allocated these pages at io_setup and writes them through
            # its own mapping, so they are there though the process may never have touched them.
            return Wanted(mapping, ((mapping.start, mapping.size),))
        case Take.HEADER:
            end = min(mapping.end, mapping.start + HEADER_BYTES)
            return Wanted(mapping, tuple(runs(pagemap, mapping.start, end, IN_MEMORY)))
        case Take.OWN | Take.HELD:
            kind = OWN if take is Take.OWN else IN_MEMORY
            there: list[Run] = []
            swapped: list[Run] = []
            for of_kind, of_swapped in slices(pagemap, mapping.start, mapping.end, kind, SWAPPED_OUT):
                there += of_kind
                swapped += of_swapped
                ahead.breathe()
            return Wanted(mapping, tuple(there), tuple(swapped))
