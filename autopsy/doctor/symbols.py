"""Whether the symbols of a QEMU that runs here are at hand, and the command that installs them."""

from __future__ import annotations

import re
from functools import cache, partial
from pathlib import Path

import msgspec

from autopsy.bundle.manifest import TargetRecord
from autopsy.capture.reading.programs import output
from autopsy.capture.reading.reader import Unreadable, as_far_as_read
from autopsy.dataclass import dataclass
from autopsy.doctor.checks import Check, note, ok
from autopsy.doctor.distribution import Distribution
from autopsy.examine.core.elf import Elf, ElfError
from autopsy.examine.core.find_files import installed_debug_files
from autopsy.linux.batch import Unanswered, ask
from autopsy.target.image import image_of

SYMBOLS = "symbols"
SECONDS = 5.0
HOMES = ("/usr/bin/", "/usr/libexec/", "/usr/lib/", "/bin/", "/usr/sbin/", "/opt/")
PATH = re.compile(r"/[\w./+-]+")  # what a package manager would take for a pattern is no path of ours
PACKAGE = re.compile(r"[a-z0-9][a-z0-9+._-]*", re.IGNORECASE)
VERSION = re.compile(r"[\w.+:~^-]+")
BY_HAND = "no package has it: keep its unstripped binary, and give it to `autopsy examine --debug-file`"
ANY_SERVER = "`autopsy examine BUNDLE --debuginfod URL` takes them later"


@dataclass(frozen=True, slots=True)
class Owner:
    """The package that has a file, and its version as the package manager wants it said."""

    package: str
    version: str


class _OfBinary(msgspec.Struct, frozen=True):
    build_id: str
    has_dwarf: bool
    has_symtab: bool


def symbols(target: TargetRecord, distribution: Distribution) -> Check:
    """Return whether a core of this process can be read with names, lines and types."""
    (answer,) = ask([partial(_of_binary, target.pid)], each=SECONDS, overall=SECONDS)
    if isinstance(answer, Unanswered):
        return note(SYMBOLS, f"its binary cannot be read: {answer.why}")
    binary = msgspec.json.decode(answer, type=_OfBinary)
    if binary.has_dwarf:
        return ok(SYMBOLS, "in its binary, with types and lines")
    if _has_debug_file(binary.build_id):
        return ok(SYMBOLS, "installed, with types and lines")
    words = "its own names only" if binary.has_symtab else "stripped: exported names only"
    return note(SYMBOLS, f"{words} (build-id {binary.build_id or 'none'})", _how_to_get_them(target, distribution))


def _of_binary(pid: int) -> bytes:
    """Read what a process runs, by way of /proc: its path may lead elsewhere by now. Can hang on its storage."""
    elf = Elf(Path(image_of(pid).place))
    return msgspec.json.encode(_OfBinary(elf.build_id, elf.has_dwarf, elf.has_symtab))


def _has_debug_file(build_id: str) -> bool:
    for folder in installed_debug_files() if build_id else ():
        try:
            elf = Elf(folder / ".build-id" / build_id[:2] / f"{build_id[2:]}.debug")
        except (ElfError, OSError):
            continue
        if elf.build_id == build_id and elf.has_dwarf:
            return True
    return False


def _how_to_get_them(target: TargetRecord, distribution: Distribution) -> str:
    """Return a command, or why there is none; a QEMU that was upgraded meanwhile wants its old version's symbols."""
    if not PATH.fullmatch(target.exe) or not target.exe.startswith(HOMES):
        return BY_HAND
    if target.exe_deleted or not _is_installed(target):
        return f"it was upgraded while it ran: get the symbols of the version that runs; {ANY_SERVER}"
    owner = _owner(target.exe, distribution)
    if owner is None:
        return BY_HAND
    known = _apt_knows(f"{owner.package}-dbgsym", owner.version) if distribution.is_debian else False
    return distribution.install_symbols(owner.package, owner.version, known=known) or ANY_SERVER


def _is_installed(target: TargetRecord) -> bool:
    """Return whether the file at that path is the one that runs."""
    try:
        return Elf(Path(target.exe)).build_id == target.build_id
    except (ElfError, OSError):
        return False


def _owner(path: str, distribution: Distribution) -> Owner | None:
    if not distribution.is_debian:
        name, _, version = _printed("rpm", "-qf", "--qf", "%{NAME} %{VERSION}-%{RELEASE}\n", path).partition(" ")
        return _sound(name, version)
    # A file that was installed as /bin/x is found as /usr/bin/x, and the other way round.
    for place in (path, path.removeprefix("/usr"), f"/usr{path}"):
        names, colon, _ = _printed("dpkg-query", "-S", place).partition(": ")
        package = names.partition(",")[0].partition(":")[0]
        if colon and (owner := _sound(package, _printed("dpkg-query", "-W", "-f=${Version}\n", package))):
            return owner
    return None


def _sound(package: str, version: str) -> Owner | None:
    """Return an owner whose words are safe in a command line, or nobody."""
    if PACKAGE.fullmatch(package) and VERSION.fullmatch(version):
        return Owner(package, version)
    return None


def _apt_knows(package: str, version: str) -> bool:
    return f" {version} " in _printed("apt-cache", "madison", package)


@cache  # a host's VMs run the same few binaries
def _printed(*words: str) -> str:
    """Return the first line that a program prints, empty where it fails or is not there."""
    try:
        printed = output(words, seconds=SECONDS)
    except (Unreadable, OSError):
        return ""
    return as_far_as_read(printed).decode("utf-8", "replace").partition("\n")[0]
