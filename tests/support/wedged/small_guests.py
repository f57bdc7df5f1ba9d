"""Guests of a few bytes that leave the CPU to the tests beside them."""

from __future__ import annotations

from pathlib import Path

# As autopsy.drill.guests.WRITE_FOR_EVER, but for the hlt: 18 requests a second, for a timer ends it, and a dot
# every 8. One that never rests takes a core of two for as long as its VM lives, and what a capture is tried for needs
# no more than that it goes on.
WRITE_NOW_AND_THEN = bytes.fromhex(
    "fa 31c0 8ed8 8ec0 8ed0 bc007c fb"  # cli; ax, ds, es, ss = 0; sp = 0x7c00; sti
    "f4 be507c b280 b80043 cd13"  # again: hlt; si = packet; dl = first disk; ah = 43h, extended write; int 13h
    "722d"  # jc failed
    "66ff06587c 66a1587c"  # packet.sector += 1; eax = packet.sector
    "663d00700000 7209"  # below 28672: jb not_yet
    "66c706587c40000000"  # packet.sector = 64
    "66f706587c07000000 75ce"  # not_yet: no multiple of 8: jnz again
    "baf803 b02e ee ebc6"  # out(0x3f8, '.'); jmp again
    "baf803 b045 ee ebbe"  # failed: out(0x3f8, 'E'); jmp again
    "90"  # the packet is aligned to 4:
    "10 00 0100 0000 0010 4000000000000000"  # 16 bytes; 1 sector; from 1000:0000; to sector 64
)
READ_NOW_AND_THEN = WRITE_NOW_AND_THEN.replace(bytes.fromhex("b80043"), bytes.fromhex("b80042"))  # int 13h, ah = 42h
ENOUGH = 12  # requests of such a guest, after which it is at work: its firmware has made one or two


def boot_sector(disk: Path, code: bytes) -> Path:
    """Put a guest of a few bytes at the start of a disk."""
    with disk.open("r+b") as stream:
        stream.write(code.ljust(510, b"\0") + b"\x55\xaa")
    return disk
