"""Packs what a small Linux needs to run this autopsy and a QEMU into an initramfs, from what is installed here."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import py_compile
import re
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

HOUSE = Path(__file__).resolve().parents[3]
PROJECT = "vm-autopsy"
ALSO = ("prometheus-client",)
# Of the standard library: what is large, and no program needs.
LEFT_OUT = frozenset({"test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "site-packages"})
NAME = re.compile(r"[\w.-]+")
NEEDED = re.compile(r"(?:=> )?(/\S+) \(0x")
QEMU_DATA = ("kvmvapic.bin",)
QEMU_PLACES = ("/usr/share/qemu", "/usr/share/seabios")


def header(name: bytes, mode: int, size: int, number: int, mtime: int = 0) -> bytes:
    """Return an entry's head as cpio's newc has it (Documentation/driver-api/early-userspace/buffer-format.rst)."""
    fields = (number, mode, 0, 0, 1, mtime, size, 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name + b"\0"
    return head + bytes(-len(head) % 4)


def pack(files: dict[str, Path | bytes], place: Path) -> None:
    """Write files into an archive: by where they are to lie, each a file of this host's, or what it is to hold."""
    folders = sorted({str(parent) for name in files for parent in Path(name).parents if str(parent) != "."})
    with place.open("wb") as archive:
        for number, folder in enumerate(folders, 1):
            archive.write(header(folder.encode(), stat.S_IFDIR | 0o755, 0, number))
        for number, (name, what) in enumerate(sorted(files.items()), len(folders) + 1):
            data = what if isinstance(what, bytes) else what.read_bytes()
            mtime = int(what.stat().st_mtime) if isinstance(what, Path) else 0
            archive.write(header(name.encode(), stat.S_IFREG | 0o755, len(data), number, mtime))
            archive.write(data + bytes(-len(data) % 4))
        archive.write(header(b"TRAILER!!!", 0, 0, 0))


def libraries(*programs: Path) -> dict[str, Path | bytes]:
    """Return the shared libraries of programs and of each other, where the loader looks for them."""
    said = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=False).stdout
    return {path.lstrip("/"): Path(path) for path in NEEDED.findall(said)}


def below(folder: Path, at: str, skip: frozenset[str] = frozenset()) -> Iterator[tuple[str, Path]]:
    """Return the files below a folder, and where they are to lie."""
    for here, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in skip]
        for name in names:
            path = Path(here, name)
            if path.is_file() and path.suffix != ".a":
                yield f"{at}/{path.relative_to(folder)}", path


def python() -> dict[str, Path | bytes]:
    """Return this Python with its standard library, at its own prefix."""
    program = Path(sys.executable).resolve()
    prefix = Path(sys.base_prefix)
    library = Path(sysconfig.get_path("stdlib"))
    extensions = [path for path in library.rglob("*.so") if LEFT_OUT.isdisjoint(path.parts)]
    files: dict[str, Path | bytes] = dict(below(library, str(library).lstrip("/"), LEFT_OUT))
    files |= {str(program).lstrip("/"): program} | libraries(program, *extensions)
    assert program.is_relative_to(prefix)
    return files


def distributions(name: str, known: set[str]) -> set[str]:
    """Return a distribution with all that it needs without any extra."""
    if name in known:
        return known
    try:
        requires = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return known  # for another Python or system
    known.add(name)
    for line in requires:
        if "extra ==" not in line and (match := NAME.match(line)):
            distributions(match[0], known)
    return known


def packages(scratch: Path) -> dict[str, Path | bytes]:
    """Return this autopsy, compiled, and what it imports, beside the standard library: any Python finds them there."""
    at = sysconfig.get_path("stdlib").lstrip("/")
    files: dict[str, Path | bytes] = {}
    for name in sorted(set().union(*(distributions(each, set()) for each in (PROJECT, *ALSO))) - {PROJECT}):
        for part in importlib.metadata.files(name) or ():
            path = Path(str(part.locate()))
            if ".." not in part.parts and path.is_file():
                files[f"{at}/{part}"] = path
    extensions = [path for path in files.values() if isinstance(path, Path) and ".so" in path.suffixes]
    files |= libraries(*extensions)
    for name, path in below(HOUSE / "autopsy", f"{at}/autopsy", frozenset({"__pycache__"})):
        files[name] = path
        if path.suffix == ".py":  # an emulated processor would take a minute for all of them
            cached = importlib.util.cache_from_source(name)
            target = scratch / cached
            py_compile.compile(str(path), str(target), f"/{name}", doraise=True)
            files[cached] = target
    return files


def qemu(binary: Path) -> dict[str, Path | bytes]:
    """Return a QEMU with its libraries and modules, as far as a machine without devices for people needs them."""
    modules = Path(f"/usr/lib/{sysconfig.get_config_var('MULTIARCH')}/qemu")
    files: dict[str, Path | bytes] = {str(binary).lstrip("/"): binary}
    extensions = sorted(modules.glob("accel-*.so"))
    files |= {str(path).lstrip("/"): path for path in extensions}
    for place in QEMU_PLACES:
        files |= {f"{place.lstrip('/')}/{name}": path for name in QEMU_DATA if (path := Path(place, name)).is_file()}
    return files | libraries(binary, *extensions)


def tools(*names: Path) -> dict[str, Path | bytes]:
    """Return programs with their libraries."""
    return {str(path).lstrip("/"): path for path in names} | libraries(*names)
