"""Name addresses of the frozen process, and say how well each of its modules can be named."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Literal

import msgspec

from autopsy.bundle import layout
from autopsy.bundle.records import Frame, Module
from autopsy.dataclass import dataclass
from autopsy.examine.core.elf import Elf, LoadSegment, Symbol, build_id_in, program_headers
from autopsy.examine.core.find_files import DELETED, Files, FoundFile
from autopsy.examine.core.inputs import Frozen
from autopsy.examine.core.reader import PAGE, Core, CoreError, MappedFile
from autopsy.linux.mappings import printable

AT_PHDR = 3
AT_ENTRY = 9
AT_SYSINFO_EHDR = 33
MOST_VDSO = 8 * PAGE
MOST_IMAGES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ElfImage:
    """One ELF file in memory. `bias` turns an address of the file into one of the process.

    `code` and `zeroed` are the ranges of its instructions and of its .bss; `file` holds its bytes, `debug` its separate
    debug file, where they could be found.
    """

    path: str
    start: int
    end: int
    bias: int
    build_id: str
    deleted: bool
    code: tuple[tuple[int, int], ...]
    zeroed: tuple[tuple[int, int], ...]
    file: FoundFile | None
    debug: FoundFile | None

    @property
    def named_by(self) -> Elf | None:
        """Return the file with the best names: its own or the separate one."""
        if self.file and self.file.elf.has_symtab:
            return self.file.elf
        if self.debug:
            return self.debug.elf
        return self.file.elf if self.file else None

    def record(self) -> Module:
        """Return what modules.json says of it."""
        symbols: Literal["dwarf", "symtab", "dynsym", "none"] = "none"
        best = self.debug or self.file
        for file in (self.debug, self.file):
            if file and file.elf.has_dwarf:
                symbols, best = "dwarf", file
                break
        else:
            if best and best.elf.has_symtab:
                symbols = "symtab"
            elif best and best.elf.has_dynsym:
                symbols = "dynsym"
        return Module(
            path=self.path,
            base=self.start,
            end=self.end,
            build_id=self.build_id,
            symbols=symbols,
            source=best.source if best else "not found",
            deleted=self.deleted,
        )


class Symbols:
    """Every image of the process, and the names in them."""

    def __init__(self, core: Core, frozen: Frozen) -> None:
        self.core = self._core = core
        self._files = Files(frozen)
        deleted = _deleted_paths(frozen)
        self._known_ids = {module.base: module.build_id for module in _told_before(frozen)[:MOST_IMAGES]}
        parts = self._parts(core)
        self.beyond = max(0, len(parts) - MOST_IMAGES)  # programs and libraries that are left out
        self.images = tuple(
            sorted((self._image(group, deleted) for group in parts[:MOST_IMAGES]), key=lambda image: image.start)
        )
        self._starts = [image.start for image in self.images]
        self.main = self._main()
        self._vdso = self._whole_vdso()
        # The same few frames are on most stacks.
        self._frames: dict[tuple[int, bool, str, str, int], Frame] = {}

    @property
    def modules(self) -> tuple[Module, ...]:
        """Return the records of modules.json."""
        return tuple(image.record() for image in self.images)

    def image_at(self, address: int) -> ElfImage | None:
        """Return the image whose mapping, .bss included, holds the address."""
        index = bisect_right(self._starts, address) - 1
        if index < 0 or address >= self.images[index].end:
            return None
        return self.images[index]

    def is_code(self, address: int) -> bool:
        """Return whether the address lies among an image's instructions."""
        image = self.image_at(address)
        return image is not None and any(start <= address < end for start, end in image.code)

    def is_start(self, address: int) -> bool:
        """Return whether .eh_frame says that a function starts at the address."""
        image = self.image_at(address)
        return image is not None and _unwind_start(image, address - image.bias) == address - image.bias

    def can_unwind(self, pc: int) -> bool:
        """Return whether a caller can be told from here: the file's unwind tables are at hand, or the vDSO's."""
        image = self.image_at(pc)
        if image is None:
            return not pc or self._vdso[0] <= pc < self._vdso[1]
        return image.file is not None

    def place(self, address: int) -> str:
        """Return `file+0xoffset` for an address of an image, else the empty string."""
        image = self.image_at(address)
        return f"{image.path.rsplit('/', 1)[-1]}+{address - image.bias:#x}" if image else ""

    def function(self, pc: int, *, called: bool = True) -> Symbol | None:
        """Return the closest function at or below; `called` when the pc is a return address, behind its call."""
        image = self.image_at(pc)
        elf = image.named_by if image else None
        if image is None or elf is None:
            return None
        symbol = elf.functions.at(pc - image.bias - called)
        return Symbol(symbol.address + image.bias, symbol.size, symbol.name) if symbol else None

    def variable(self, address: int) -> str:
        """Return the name of the variable that covers the address, empty when none is known to."""
        image = self.image_at(address)
        elf = image.named_by if image else None
        if image is None or elf is None:
            return ""
        symbol = elf.objects.at(address - image.bias)
        return symbol.name if symbol and symbol.covers(address - image.bias) else ""

    def find(self, name: str) -> tuple[int, ...]:
        """Return the addresses, in the QEMU binary, of every variable and function of that name."""
        elf = self.main.named_by if self.main else None
        if self.main is None or elf is None:
            return ()
        both = elf.objects.named(name) + elf.functions.named(name)
        return tuple(symbol.address + self.main.bias for symbol in both)

    def read(self, address: int, size: int) -> bytes:
        """Return frozen bytes, or those of the file mapped there; short, or empty, where neither has them."""
        try:
            return self._core.read(address, size)
        except CoreError:
            image = self.image_at(address)
            if image is None or image.file is None:
                return b""
            return image.file.elf.read(address - image.bias, size)

    def string(self, address: int, most: int = 256) -> str:
        """Return the C string at an address of heap, data or .rodata, empty when it is not to be had."""
        try:
            return self._core.string(address, most)
        except CoreError:
            return self.read(address, most).split(b"\0", 1)[0].decode("utf-8", "backslashreplace")

    def frame(self, pc: int, *, called: bool = True, function: str = "", file: str = "", line: int = 0) -> Frame:
        """Return the frame at a pc. A debugger's `function` is believed only where a symbol or DWARF covers the pc."""
        key = (pc, called, function, file, line)
        if key not in self._frames:
            self._frames[key] = self._frame(pc, called=called, function=function, file=file, line=line)
        return self._frames[key]

    def _frame(self, pc: int, *, called: bool, function: str, file: str, line: int) -> Frame:
        image = self.image_at(pc)
        if image is None:
            return Frame(pc=pc, function=function, file=file, line=line)
        offset = pc - image.bias
        symbol = self.function(pc, called=called)
        covered = symbol is not None and symbol.covers(pc - called)
        if covered or file:
            name = function
            if symbol and covered and (not function or _bare(function) == _bare(symbol.name)):
                name = symbol.name
            return Frame(pc=pc, function=name, module=image.path, offset=offset, file=file, line=line)
        return Frame(
            pc=pc,
            near=symbol.name if symbol else "",
            module=image.path,
            offset=offset,
            unwind_start=_unwind_start(image, offset - called),
        )

    def _parts(self, core: Core) -> list[list[MappedFile]]:
        """Group the mappings by ELF file: each group begins with the file's first page."""
        groups: list[list[MappedFile]] = []
        for part in sorted(core.files, key=lambda part: part.start):
            if part.offset == 0 and self._begins_elf(part):
                groups.append([part])
            elif groups and groups[-1][0].path == part.path:
                groups[-1].append(part)
        return groups

    def _begins_elf(self, part: MappedFile) -> bool:
        """Tell by the first page, else by the file: after a fork, as for `-daemonize`, the page is often absent."""
        try:
            return self._core.read(part.start, 6) == b"\x7fELF\x02\x01"
        except CoreError:
            return self._files.mapped(part, self._known_ids.get(part.start, "")) is not None

    def _image(self, parts: list[MappedFile], deleted: frozenset[str]) -> ElfImage:
        first = parts[0]
        segments, build_id = _header(self._core, first.start)
        build_id = build_id or self._known_ids.get(first.start, "")
        file = self._files.mapped(first, build_id)
        debug = None
        # A server is asked for QEMU alone: each question may take a minute.
        is_main = any(part.start <= self._core.auxv.get(AT_ENTRY, 0) < part.end for part in parts)
        if is_main and file is None:
            file = self._files.fetched("executable", build_id)
        if file:
            segments = file.elf.segments or segments
            build_id = build_id or file.elf.build_id
        if not (file and file.elf.has_dwarf):
            debug = self._files.debug(build_id)
            if is_main and debug is None:
                debug = self._files.fetched("debuginfo", build_id)
        lowest = min((segment.address for segment in segments), default=0) & -PAGE
        bias = first.start - lowest
        end = max([part.end for part in parts] + [bias + segment.address + segment.size for segment in segments])
        path = first.path.removesuffix(DELETED)
        return ElfImage(
            path=printable(path),
            start=first.start,
            end=min(end, first.start + (1 << 40)),
            bias=bias,
            build_id=build_id,
            deleted=first.path.endswith(DELETED) or path in deleted,
            code=tuple(
                (bias + segment.address, bias + segment.address + segment.size)
                for segment in segments
                if segment.executable
            ),
            zeroed=tuple(
                (bias + segment.address + segment.stored, bias + segment.address + segment.size)
                for segment in segments
                if segment.writable and segment.stored < segment.size
            ),
            file=file,
            debug=debug,
        )

    def _whole_vdso(self) -> tuple[int, int]:
        """Return where the kernel's own library lies, if all of it was frozen: gdb reads its unwind tables there."""
        base = self._core.auxv.get(AT_SYSINFO_EHDR, 0)
        try:
            segments, _ = program_headers(self._core.read(base, PAGE))
        except CoreError:
            return 0, 0
        size = max((segment.offset + segment.stored for segment in segments), default=0)
        return (base, base + size) if 0 < size <= MOST_VDSO and self._core.holds(base, size) else (0, 0)

    def _main(self) -> ElfImage | None:
        for kind in (AT_ENTRY, AT_PHDR):
            if image := self.image_at(self._core.auxv.get(kind, 0)):
                return image
        return None


def _header(core: Core, base: int) -> tuple[tuple[LoadSegment, ...], str]:
    """Return the program headers and the build-id of the file mapped at `base`, from the core alone."""
    try:
        page = core.read(base, PAGE)
    except CoreError:
        return (), ""
    segments, notes = program_headers(page)
    lowest = min((segment.address for segment in segments), default=0) & -PAGE
    for address, _, size in notes:
        try:
            build_id = build_id_in(core.read(base - lowest + address, min(size, PAGE)))
        except CoreError:
            continue
        if build_id:
            return segments, build_id
    return segments, ""


def _told_before(frozen: Frozen) -> tuple[Module, ...]:
    """Return the modules of an earlier examination, which had the process's own files."""
    try:
        return msgspec.json.decode(
            frozen.read(layout.evidence(layout.GDB_THREADS, layout.MODULES)), type=tuple[Module, ...]
        )
    except (msgspec.DecodeError, RecursionError):
        return ()


def _deleted_paths(frozen: Frozen) -> frozenset[str]:
    """Return the paths that the kernel's own maps called deleted."""
    suffix = DELETED.encode()
    lines: Iterable[bytes] = frozen.read(layout.evidence(layout.WITNESS, layout.MAPS)).splitlines()
    rows = (line.split(None, 5) for line in lines if line.endswith(suffix))
    return frozenset(row[5].removesuffix(suffix).decode("utf-8", "surrogateescape") for row in rows if len(row) == 6)


def _bare(name: str) -> str:
    """Return a name without glibc's marks: DWARF says `__GI___ioctl`, .dynsym `ioctl`, and readers want one of them."""
    return name.removeprefix("__GI_").lstrip("_")


def _unwind_start(image: ElfImage, offset: int) -> int:
    starts = image.file.elf.unwind_starts if image.file else []
    index = bisect_right(starts, offset) - 1
    return starts[index] if index >= 0 else 0
