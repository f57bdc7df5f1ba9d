"""The QEMUs that tests run on, and what starts each."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from autopsy.drill.process import tool

HERE = Path(__file__).resolve().parent
LAB = HERE.parents[1] / "build" / "lab"
CHROOTED = HERE / "chrooted"


@dataclass(frozen=True, slots=True)
class Build:
    """One QEMU to test with. `label` is "7.2", "10.0.2", "10.0.2-debug" or "11".

    `binary` is its file, `command` what starts it.
    """

    label: str
    binary: Path
    firmware_arguments: tuple[str, ...]
    why_missing: str
    system: Path | None = None

    @property
    def present(self) -> bool:
        return self.binary.is_file() and (self.system is None or os.geteuid() == 0)

    @property
    def command(self) -> tuple[str, ...]:
        if self.system is None:
            return (str(self.binary),)
        return (*self._inside(), f"/{self.binary.relative_to(self.system)}")

    def _inside(self) -> tuple[str, ...]:
        """Return what goes ahead of a path in its own system; the script has to know which mounts are this run's."""
        return ("env", f"TMPDIR={os.environ.get('TMPDIR', '/tmp')}", str(CHROOTED), str(self.system))  # noqa: S108 - told, not used

    def tool(self, name: str) -> tuple[str, ...]:
        """Return what starts a program such as qemu-storage-daemon: the one of this QEMU, or of this host."""
        if self.system is None:
            beside = self.binary.with_name(name)
            return (str(beside) if beside.is_file() else tool(name),)
        return (*self._inside(), f"/usr/bin/{name}")

    def has_device(self, name: str) -> bool:
        asked = subprocess.run(
            [*self.command, "-machine", "none", "-device", f"{name},help"], capture_output=True, check=False
        )
        return b"options" in asked.stdout


def qemu_builds() -> tuple[Build, ...]:
    """Return every QEMU that tests know, present or not; AUTOPSY_QEMU, _10 and _DEBUG name others."""
    backport = LAB / "qemu-10"
    return (
        _build("7.2", "AUTOPSY_QEMU", Path("/usr/bin/qemu-system-x86_64"), None, "apt install qemu-system-x86"),
        _build(
            "10.0.2",
            "AUTOPSY_QEMU_10",
            backport / "usr/bin/qemu-system-x86_64",
            backport / "usr/share",
            "`make lab` unpacks it, on Debian 12 and 13",
        ),
        _build(
            "10.0.2-debug",
            "AUTOPSY_QEMU_DEBUG",
            LAB / "qemu-debug" / "qemu-system-x86_64",
            Path("/usr/share"),
            "`make lab` builds it",
        ),
        Build(
            "11",
            LAB / "qemu-11/usr/bin/qemu-system-x86_64",
            (),
            "QEMU 11 is not here: `make lab` unpacks it from Debian sid, and root starts it",
            LAB / "qemu-11",
        ),
    )


def _build(label: str, variable: str, usual: Path, share: Path | None, missing: str) -> Build:
    override = os.environ.get(variable)
    binary = Path(override) if override else usual
    if override and share is not None and label == "10.0.2":
        share = binary.parent.parent / "share"
    firmware = () if share is None else ("-L", f"{share}/qemu", "-L", f"{share}/seabios", "-vga", "none")
    return Build(label, binary, firmware, f"QEMU {label} is not here: {missing}")


def build(label: str) -> Build:
    """Return one QEMU; the test is skipped where it is missing, and fails in CI."""
    found = next(each for each in qemu_builds() if each.label == label)
    if not found.present:
        missing(found.why_missing)
    return found


def need_older_than(major: int) -> None:
    """Skip this test where the distribution's own QEMU, 7.2 on Debian 12, is newer."""
    if int(version(build("7.2")).split(".")[0]) >= major:
        pytest.skip(f"the distribution's QEMU is no older than {major}")


def version(of: Build) -> str:
    """Return what a QEMU says of itself, such as 7.2.17."""
    told = subprocess.run([*of.command, "--version"], capture_output=True, text=True, check=True).stdout
    return told.split("version ")[1].split()[0]


def missing(what: str) -> None:
    """Skip this test for want of something; in CI everything is there, so its absence is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)
