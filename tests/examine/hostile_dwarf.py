"""Debug information that a debugger dies of, made by hand, so that no compiler's version matters.

Found by tools/mutate_elf.py: the file names of a line table are in a form that nobody knows. gdb 13 leaves the names
out, and then reads them.
"""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

STRING, DATA1, DATA8, ADDRESS, FLAG, SECTION, EXPRESSION, UNKNOWN = 0x08, 0x0B, 0x07, 0x01, 0x19, 0x17, 0x18, 0xDA
LOW, SIZE = 0x1000, 0x4000000  # of all the code of any QEMU

UNIT = (
    (0x25, STRING, b"by hand\0"),  # producer
    (0x13, DATA1, b"\x1d"),  # language: C11
    (0x03, STRING, b"a.c\0"),  # name
    (0x11, ADDRESS, struct.pack("<Q", LOW)),
    (0x12, DATA8, struct.pack("<Q", SIZE)),
    (0x10, SECTION, struct.pack("<I", 0)),  # the line table
)
FUNCTION = (
    (0x3F, FLAG, b""),  # external
    (0x03, STRING, b"everything\0"),
    (0x11, ADDRESS, struct.pack("<Q", LOW)),
    (0x12, DATA8, struct.pack("<Q", SIZE)),
    (0x40, EXPRESSION, b"\x01\x9c"),  # frame base: the canonical frame address
)
OPCODE_LENGTHS = bytes((0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1))


def number(value: int) -> bytes:
    """Return an unsigned LEB128."""
    done = b""
    while value > 0x7F:
        done += bytes([value & 0x7F | 0x80])
        value >>= 7
    return done + bytes([value])


def with_length(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def sections() -> dict[str, bytes]:
    abbreviations = entries = b""
    for code, tag, attributes in ((1, 0x11, UNIT), (2, 0x2E, FUNCTION)):
        forms = b"".join(number(name) + number(form) for name, form, _ in attributes)
        abbreviations += number(code) + number(tag) + bytes([code == 1]) + forms + b"\0\0"
        entries += number(code) + b"".join(data for _, _, data in attributes)
    info = with_length(struct.pack("<HBBI", 5, 1, 8, 0) + entries + b"\0")
    folders = b"\x01" + number(1) + number(STRING) + number(1) + b"/\0"
    files = b"\x01" + number(1) + number(UNKNOWN) + number(1) + b"a.c\0"
    header = struct.pack("<BBBbBB", 1, 1, 1, -5, 14, 13) + OPCODE_LENGTHS + folders + files
    program = b"\0\x09\x02" + struct.pack("<Q", LOW) + b"\x01\x02" + number(SIZE) + b"\0\x01\x01"
    line = with_length(struct.pack("<HBBI", 5, 8, 0, len(header)) + header + program)
    return {".debug_info": info, ".debug_abbrev": abbreviations + b"\0", ".debug_line": line}


def graft(binary: Path, copy: Path) -> None:
    """Make a copy of a stripped program with such debug information, and none of its own anywhere."""
    words = ["objcopy", "-R", ".gnu_debugaltlink", "-R", ".gnu_debuglink"]
    for name, data in sections().items():
        part = copy.with_name(f"{copy.name}{name}")
        part.write_bytes(data)
        words += ["--add-section", f"{name}={part}"]
    subprocess.run([*words, binary, copy], check=True)
