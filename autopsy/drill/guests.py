"""Guests of a few bytes: one that sleeps for ever, one that writes to its disk for ever."""

from __future__ import annotations

from pathlib import Path

SECTOR = 512
ROM = 64 * 1024
RESET_VECTOR = ROM - 16

HALT = bytes.fromhex("fa f4 ebfc")  # cli; hlt; jmp to the hlt

# One sector after the other, 64 to 28671, round and round; a dot on the serial port every 64.
WRITE_FOR_EVER = bytes.fromhex(
    "fa 31c0 8ed8 8ec0 8ed0 bc007c fb"  # cli; ax, ds, es, ss = 0; sp = 0x7c00; sti
    "be507c b280 b80043 cd13"  # again: si = packet; dl = first disk; ah = 43h, extended write; int 13h
    "722d"  # jc failed
    "66ff06587c 66a1587c"  # packet.sector += 1; eax = packet.sector
    "663d00700000 7209"  # below 28672: jb not_yet
    "66c706587c40000000"  # packet.sector = 64
    "66f706587c3f000000 75cf"  # not_yet: no multiple of 64: jnz again
    "baf803 b02e ee ebc7"  # out(0x3f8, '.'); jmp again
    "baf803 b045 ee ebbf"  # failed: out(0x3f8, 'E'); jmp again
    "6690"  # the packet is aligned to 4:
    "10 00 0100 0000 0010 4000000000000000"  # 16 bytes; 1 sector; from 1000:0000; to sector 64
)


def write_halting_firmware(rom: Path) -> None:
    """Make a firmware that halts at once.

    A real one resets the disks while it starts, which drains them, and then reads them: it would change what we set up.
    """
    rom.write_bytes((bytes(RESET_VECTOR) + HALT).ljust(ROM, b"\0"))


def write_boot_sector(disk: Path) -> None:
    """Put the guest at the start of a raw disk of at least 14 MiB."""
    with disk.open("r+b") as stream:
        stream.write(WRITE_FOR_EVER.ljust(SECTOR - 2, b"\0") + b"\x55\xaa")
