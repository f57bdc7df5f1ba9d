"""Says numbers with their units."""

from __future__ import annotations

SIZES = ("B", "kB", "MB", "GB", "TB", "PB")


def size(number: float) -> str:
    """Return `1.2 MB`; powers of ten, as disks and QEMU's limits are told."""
    for unit in SIZES:
        if abs(number) < 999.5 or unit == SIZES[-1]:
            return f"{number:.0f} {unit}" if unit == "B" or abs(number) >= 99.5 else f"{number:.1f} {unit}"
        number /= 1000
    return ""


def milliseconds(number: float) -> str:
    """Return `0.42 ms`, `12 ms`, `5.1 s`."""
    if abs(number) >= 1000:
        return duration(number / 1000)
    return f"{number:.2f} ms" if abs(number) < 10 else f"{number:.0f} ms"


def duration(seconds: float) -> str:
    """Return `5.1 s`, `12 min 4 s`, `1 h 27 min`."""
    if abs(seconds) < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if abs(whole) < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def count(number: int, one: str, many: str = "") -> str:
    """Return `1 thread`, `1,000 threads`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def limit(name: str, value: int) -> str:
    """Return one of QEMU's limits with its unit: `bps-total 60.0 MB/s`."""
    return f"{name} {size(value)}/s" if name.startswith("bps") else f"{name} {value:,}/s"
