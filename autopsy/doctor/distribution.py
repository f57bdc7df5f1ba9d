"""Which distribution this is, and how its own means install a package or a debug package here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from autopsy.dataclass import dataclass
from autopsy.text import plain

OS_RELEASE = ("etc/os-release", "usr/lib/os-release")
MOST_BYTES = 1 << 16
SETTING = re.compile(r"^([A-Z_]+)=(?:\"([^\"\n]*)\"|'([^'\n]*)'|([^\s\"']*))\s*$", re.MULTILINE)
Family = Literal["debian", "ubuntu", "proxmox-ve", "fedora", "suse", "other"]
CODENAME = re.compile(r"[a-z]+")

DEBIAN_DEBUG = "http://debug.mirrors.debian.org/debian-debug"
UBUNTU_DEBUG = "http://ddebs.ubuntu.com"
LIST = "/etc/apt/sources.list.d/debug.list"


@dataclass(frozen=True, slots=True)
class Distribution:
    """What os-release(5) tells. `codename` is that of Debian's suites, empty where it has none.

    `moving` says that it is Debian's testing or unstable, which os-release does not tell apart.
    """

    name: str
    family: Family
    codename: str = ""
    moving: bool = False

    @property
    def is_debian(self) -> bool:
        """Return whether dpkg and apt are its means."""
        return self.family in {"debian", "ubuntu", "proxmox-ve"}

    def install(self, package: str) -> str:
        """Return the command that installs a package; its name is Debian's, and often everybody's."""
        match self.family:
            case "debian" | "ubuntu" | "proxmox-ve":
                return f"apt install {package}"
            case "fedora":
                return f"dnf install {ELSEWHERE.get(package, package)}"
            case "suse":
                return f"zypper install {ELSEWHERE.get(package, package)}"
            case "other":
                return f"install {package} by this distribution's means"

    def install_symbols(self, package: str, version: str, *, known: bool) -> str:
        """Return the command that installs the debug symbols of a package; `known`: apt's lists have them already."""
        match self.family:
            case "debian" | "ubuntu" | "proxmox-ve":
                install = f"apt install {package}-dbgsym={version}"
                return install if known else f"{self._add_archive()}{install}"
            case "fedora":
                return f"dnf debuginfo-install {package}-{version}"
            case "suse":
                return f"zypper --plus-content debug install {package}-debuginfo={version}"
            case "other":
                return ""

    def _add_archive(self) -> str:
        """Return what makes apt know the archive of debug symbols, ready for another command behind it."""
        match self.family:
            case "debian" if self.codename:
                # Security updates have their symbols where they wait for the next point release.
                more = "unstable" if self.moving else f"{self.codename}-proposed-updates"
                suites = " ".join(f"'deb {DEBIAN_DEBUG} {suite}-debug main'" for suite in (self.codename, more))
                return f"printf '%s\\n' {suites} >{LIST} && apt update && "
            case "ubuntu" if self.codename:
                suites = " ".join(
                    f"'deb {UBUNTU_DEBUG} {self.codename}{part} main restricted universe multiverse'"
                    for part in ("", "-updates")
                )
                return f"apt install ubuntu-dbgsym-keyring && printf '%s\\n' {suites} >{LIST} && apt update && "
            case "debian" | "ubuntu" | "proxmox-ve" | "fedora" | "suse" | "other":
                return "apt update && "


ELSEWHERE = {"iproute2": "iproute", "openssh-client": "openssh", "libvirt-clients": "libvirt-client"}
FAMILIES: dict[str, Family] = {
    "debian": "debian",
    "ubuntu": "ubuntu",
    "fedora": "fedora",
    "rhel": "fedora",
    "centos": "fedora",
    "suse": "suse",
    "sles": "suse",
    "opensuse": "suse",
}


def distribution(top: Path = Path("/")) -> Distribution:
    """Return this host's distribution; Proxmox VE calls itself Debian, and is known by its configuration."""
    settings: dict[str, str] = {}
    for name in OS_RELEASE:
        if text := _text(top / name):
            settings = {match[1]: next(filter(None, match.groups()[1:]), "") for match in SETTING.finditer(text)}
            break
    codename = settings.get("VERSION_CODENAME", "")
    return Distribution(
        name=plain(settings.get("PRETTY_NAME", "this distribution")),
        family="proxmox-ve" if (top / "etc/pve").is_dir() else _family(settings),
        codename=codename if CODENAME.fullmatch(codename) else "",
        moving="/" in _text(top / "etc/debian_version"),
    )


def _family(settings: dict[str, str]) -> Family:
    words = (settings.get("ID", ""), *settings.get("ID_LIKE", "").split())
    return next((FAMILIES[stem] for word in words if (stem := word.partition("-")[0]) in FAMILIES), "other")


def _text(path: Path) -> str:
    try:
        with open(path, "rb") as stream:
            return stream.read(MOST_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
