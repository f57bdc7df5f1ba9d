"""Which programs of the host a capture would start, each tried by starting it."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys

from autopsy.capture.reading.programs import output
from autopsy.capture.reading.reader import Unreadable, as_far_as_read
from autopsy.dataclass import dataclass
from autopsy.doctor.checks import Check, note, ok
from autopsy.doctor.distribution import Distribution
from autopsy.linux import environment

OLDEST_GDB = 12
# Where a distribution has no newer gdb, PyPI does: built for glibc 2.28, on a Python of the host's with its libpython.
# Below /usr it is seen from the sandbox, and found without the caller's PATH.
NEWER_GDB = (
    "python3.{minor} -m venv /usr/local/lib/gdb && /usr/local/lib/gdb/bin/pip install gdb-for-pwndbg"
    " && ln -s /usr/local/lib/gdb/bin/gdb /usr/local/bin/"
)
SECONDS = 10.0
VERSION = re.compile(r"GNU gdb .*?(\d+)\.(\d+)[\w.-]*$", re.MULTILINE)
ASKS_PYTHON = ("-nx", "-batch", "-ex", "python import sys; print('python', *sys.version_info[:2])")


@dataclass(frozen=True, slots=True)
class Optional:
    """A program that a capture does without. `adds` says what it brings, on a host that has the folder `where`."""

    name: str
    package: str
    adds: str
    where: str = "/"


OPTIONAL = (
    Optional("ss", "iproute2", "the queues of sockets as ss tells them"),
    Optional("journalctl", "systemd", "what the journal has of the VM"),
    Optional("ssh-keygen", "openssh-client", "signed bundles (`capture --sign`)"),
    Optional("virsh", "libvirt-clients", "questions to libvirt's domains, and their kill and start", "/run/libvirt"),
    Optional("qm", "qemu-server", "`--then-start`", "/etc/pve"),
)


def programs(distribution: Distribution) -> tuple[Check, ...]:
    """Return gdb with its version, drgn, and what else is not here."""
    missing = [
        program
        for program in OPTIONAL
        if os.path.isdir(program.where) and shutil.which(program.name, path=environment.path()) is None
    ]
    return (
        _gdb(distribution),
        _drgn(),
        *(
            note(program.name, f"not installed: {program.adds}", distribution.install(program.package))
            for program in missing
        ),
    )


def _gdb(distribution: Distribution) -> Check:
    install = distribution.install("gdb")
    try:
        printed = _printed(["gdb", "-nx", "-batch", "-ex", "show version", *ASKS_PYTHON[2:]])
    except Unreadable as error:
        return note("gdb", f"{error}: backtraces are autopsy's own, without lines of source", install)
    version = VERSION.search(printed)
    if version is None:
        return note("gdb", "its version is not told", install)
    python = "python 3" in printed
    words = version[0] + (", with Python" if python else ", without Python")
    if int(version[1]) < OLDEST_GDB:
        newer = NEWER_GDB.format(minor=sys.version_info.minor)
        return note("gdb", f"{words}: older than {OLDEST_GDB}, some backtraces may be missing", newer)
    return ok("gdb", words) if python else note("gdb", f"{words}: the heap is walked by drgn alone")


def _drgn() -> Check:
    if importlib.util.find_spec("drgn") is not None:
        return ok("drgn", "walks QEMU's heap where its symbols are at hand")
    return note("drgn", "not installed: gdb walks the heap, of the first snapshot only", "the package vm-autopsy-heap")


def _printed(words: list[str]) -> str:
    printed = output(words, seconds=SECONDS)
    return as_far_as_read(printed).decode("utf-8", "replace")
