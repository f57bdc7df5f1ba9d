from __future__ import annotations

import lzma
import os
import struct
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from autopsy.bundle import layout
from autopsy.bundle.records import Module
from autopsy.examine import run
from autopsy.examine.core.debuginfod import fetch
from autopsy.examine.core.elf import SHDR, SYM, Elf, ElfError
from autopsy.examine.core.reader import PAGE, Core, CoreError
from autopsy.examine.core.symbols import Symbols
from autopsy.linux import environment
from support import lab, snapshot
from support.copies import copied


def elf(*symbols: tuple[int, int, int, bytes], mini: bytes = b"", kind: int = 11, build_id: bytes = b"") -> bytes:
    """Return a shared object with a symbol table of (address, size, type, name)."""
    strings = b"\0" + b"".join(name + b"\0" for *_, name in symbols)
    rows = [bytes(SYM.size)]
    for address, size, what, name in symbols:
        rows.append(SYM.pack(strings.index(b"\0" + name + b"\0") + 1, 0x10 | what, 0, 1, address, size))
    note = struct.pack("<III", 4, len(build_id), 3) + b"GNU\0" + build_id
    bodies = [
        (b"", 0, b"", 0),
        (b".dynsym", kind, b"".join(rows), 2),
        (b".dynstr", 3, strings, 0),
        (b".gnu_debugdata", 1, mini, 0),
        (b".note.gnu.build-id", 7, note if build_id else b"", 0),
    ]
    section_names = b"\0".join(name for name, *_ in bodies) + b"\0.shstrtab\0"
    bodies.append((b".shstrtab", 3, section_names, 0))
    if kind == 2:
        bodies[1] = (b".symtab", *bodies[1][1:])
        section_names = section_names.replace(b".dynsym", b".symtab")
        bodies[-1] = (b".shstrtab", 3, section_names, 0)
    body, headers, position = b"", b"", 64
    for name, what, data, link in bodies:
        place = section_names.index(name + b"\0") if name else 0
        headers += SHDR.pack(place, what, 0, 0, position, len(data), link, 0, 1, 0)
        body += data
        position += len(data)
    start = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        3,
        62,
        1,
        0,
        0,
        position,
        0,
        64,
        56,
        0,
        64,
        len(bodies),
        len(bodies) - 1,
    )
    return start + body + headers


def test_a_function_ends_where_its_size_says() -> None:
    table = Elf(elf((0x1000, 0x20, 2, b"first"), (0x2000, 8, 2, b"second"))).functions
    inside, behind = table.at(0x101F), table.at(0x1020)
    assert inside is not None
    assert behind is not None
    assert (inside.name, inside.covers(0x101F)) == ("first", True)
    assert (behind.name, behind.covers(0x1020)) == ("first", False)
    assert table.at(0xFFF) is None


def test_of_several_names_the_plainest_is_told() -> None:
    table = Elf(elf((0x10, 4, 2, b"__GI___poll"), (0x10, 4, 2, b"poll"), (0x10, 4, 2, b"__poll"))).functions
    symbol = table.at(0x11)
    assert symbol is not None
    assert symbol.name == "poll"


def test_a_name_is_found_even_as_the_tail_of_another() -> None:
    read = Elf(elf((0x10, 4, 1, b"global_aio_wait"), (0x20, 4, 1, b"my_global_aio_wait"), (0x30, 4, 2, b"wait")))
    assert [symbol.address for symbol in read.objects.named("global_aio_wait")] == [0x10]
    assert read.objects.named("aio_wait") == ()
    assert [symbol.address for symbol in read.functions.named("wait")] == [0x30]


def test_static_functions_are_named_by_a_mini_debug_info() -> None:
    hidden = lzma.compress(elf((0x3000, 16, 2, b"static_function"), kind=2))
    table = Elf(elf((0x1000, 16, 2, b"exported"), mini=hidden)).functions
    named = [table.at(address) for address in (0x1008, 0x3008)]
    assert [symbol.name for symbol in named if symbol] == ["exported", "static_function"]


def test_a_build_id_is_read_from_sections_too() -> None:
    assert Elf(elf(build_id=bytes(range(20)))).build_id == bytes(range(20)).hex()


def test_a_name_that_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (fifo, tmp_path, Path("/dev/zero"), tmp_path / "absent"):
        with pytest.raises(ElfError):
            Elf(path)


def exercise(data: bytes) -> None:
    try:
        read = Elf(data)
    except ElfError:
        return
    for table in (read.functions, read.objects):
        for address in (0, 0x10, 0x1008, 2**64 - 1):
            table.at(address)
        table.named("first")
    assert len(read.unwind_starts) <= len(data)
    read.read(0x1000, 64)


@given(st.binary(max_size=400))
def test_arbitrary_bytes_never_raise_past_elf_error(data: bytes) -> None:
    exercise(b"\x7fELF\x02\x01\x01" + data)


@given(st.data())
def test_a_damaged_file_never_raises_past_elf_error(data: st.DataObject) -> None:
    hidden = lzma.compress(elf((0x3000, 16, 2, b"static_behind"), kind=2))
    whole = bytearray(elf((0x1000, 8, 2, b"first"), (0x10, 4, 1, b"table"), mini=hidden, build_id=bytes(20)))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(6, len(whole) - 8))
        whole[at : at + 8] = data.draw(st.binary(min_size=8, max_size=8))
    exercise(bytes(whole))


def test_a_static_function_never_bears_its_neighbours_name(stock: lab.Build) -> None:
    read = Elf(stock.binary)
    starts = read.unwind_starts
    named = {start for start in starts if (symbol := read.functions.at(start)) and symbol.covers(start)}
    assert len(named) > 5000
    assert len(starts) - len(named) > 5000
    switch = read.functions.named("qemu_coroutine_switch")[0]
    behind = read.functions.at(switch.address + switch.size + 16)
    assert behind is not None
    assert not behind.covers(switch.address + switch.size + 16)


def test_each_module_says_how_well_it_can_be_named(stock: lab.Build) -> None:
    with lab.qemu(stock) as machine, snapshot.exposed(machine) as found:
        core = Core(found.frozen.core)
        symbols = Symbols(core, found.frozen)
        assert symbols.main is not None
        assert symbols.main.path == str(stock.binary)
        assert symbols.main.build_id == Elf(stock.binary).build_id
        (address,) = symbols.find("global_aio_wait")
        assert symbols.variable(address + 2) == "global_aio_wait"
        assert any(start <= address < end for start, end in symbols.main.zeroed)
        assert symbols.place(address).startswith("qemu-system-x86_64+0x")
        assert all(len(module.build_id) >= 16 for module in symbols.modules)
        assert {"libc.so.6", "libglib-2.0.so.0"} <= {
            name for module in symbols.modules for name in ("libc.so.6", "libglib-2.0.so.0") if name in module.path
        }


def test_a_bundle_keeps_the_binary_for_a_machine_that_has_none(stock: lab.Build) -> None:
    with lab.qemu(stock) as machine, snapshot.exposed(machine, alive=False) as found:
        packed = zstandard.compress(stock.binary.read_bytes(), 1)
        stored = replace(found.frozen, read=lambda path: packed if path == layout.BINARY else found.frozen.read(path))
        run.examine_core(stored)
        modules: list[Module] = found.record(layout.MODULES, list[Module])
        main = next(each for each in modules if each.path == str(stock.binary))
        assert (main.symbols, main.source) == ("dynsym", "bundle")


def test_a_debuginfod_server_is_asked_for_what_is_not_at_hand(
    stock: lab.Build, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = short / "bin" / "debuginfod-find"
    client.parent.mkdir()
    client.write_text(
        f'#!/bin/sh\necho "$DEBUGINFOD_URLS $*" >> {short}/asked\n[ $1 = executable ] && echo {short}/away\n'
    )
    client.chmod(0o755)
    monkeypatch.setattr(environment, "PATH", f"{client.parent}:{environment.PATH}")
    with lab.qemu(copied(stock, short, monkeypatch)) as machine, snapshot.exposed(machine, alive=False) as found:
        (short / "qemu-system-x86_64").rename(short / "away")
        symbols = Symbols(
            Core(found.frozen.core), replace(found.frozen, fetch=partial(fetch, "http://127.0.0.1:1", short))
        )
        assert symbols.main is not None
        assert symbols.main.record().source == "debuginfod"
        asked = [f"http://127.0.0.1:1 {kind} {symbols.main.build_id}" for kind in ("executable", "debuginfo")]
        assert (short / "asked").read_text().splitlines() == asked


def test_a_qemu_that_forked_is_named_though_its_first_page_is_not_in_memory(stock: lab.Build) -> None:
    with lab.qemu(stock) as machine, snapshot.exposed(machine) as found:
        core = Core(found.frozen.core)
        ahead = Symbols(core, found.frozen)
        assert ahead.main is not None
        first = ahead.main.start
        assert core.read(first, 4) == b"\x7fELF"
        forgetful = without_page(Core(found.frozen.core), first)
        alive = Symbols(forgetful, found.frozen)
        assert alive.main is not None
        assert (alive.main.path, alive.main.bias) == (ahead.main.path, ahead.main.bias)
        assert alive.find("qemu_coroutine_switch") == ahead.find("qemu_coroutine_switch")
        # Later, the process gone, its build-id is known from what that examination told.
        told = msgspec.json.encode(alive.modules)
        place = layout.evidence(layout.GDB_THREADS, layout.MODULES)
        gone = replace(found.frozen, mapped=(), read=lambda path: told if path == place else found.frozen.read(path))
        later = Symbols(forgetful, gone)
        assert later.find("qemu_coroutine_switch") == ahead.find("qemu_coroutine_switch")


def without_page(core: Core, page: int) -> Core:
    """Return the core as it would be had that page not been in memory."""
    whole = core.read

    def read(address: int, size: int) -> bytes:
        if page <= address < page + PAGE:
            raise CoreError("not in the core")
        return whole(address, size)

    core.read = read  # type: ignore[method-assign]  # what else it says stays as it is
    return core
