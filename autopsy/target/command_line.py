"""A QEMU's command line taken apart as QEMU itself takes it apart."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from autopsy.dataclass import dataclass

MOST_BYTES = 1 << 20

# QEMU's options that take no argument (qemu-options.hx, 2.x to 10.x). Every other one takes the next word, whatever
# that looks like: `-append -qmp` is a guest's kernel argument and no monitor.
FLAGS = frozenset(
    """
    h help version S s nographic snapshot daemonize nodefaults no-user-config nouserconfig nodefconfig enable-kvm
    no-kvm no-kvm-irqchip no-kvm-pit no-kvm-pit-reinjection no-kvm-apic mem-prealloc audio-help usb portrait
    full-screen no-frame alt-grab ctrl-grab no-quit sdl curses win2k-hack no-fd-bootchk no-acpi no-hpet rtc-td-hack
    xen-attach xen-create xen-domid-restrict no-reboot no-shutdown only-migratable localtime old-param semihosting
    singlestep one-insn-per-tb preconfig enable-fips async-teardown enable-sync-profile perfmap jitdump tdf
    """.split()  # noqa: SIM905 - a list of fifty quoted words would hide the one that is missing
)
# Those of qemu-storage-daemon (storage-daemon/qemu-storage-daemon.c, 5.0 to 11.x), and which of them take no argument.
DAEMON_OPTIONS = ("blockdev", "chardev", "daemonize", "export", "help", "monitor", "nbd-server", "object", "pidfile",
                  "trace", "version")  # fmt: skip
DAEMON_FLAGS = frozenset({"daemonize", "help", "version", "h", "V"})
# Device models that are a disk to the guest. CD-ROM and floppy drives are told apart by name: they are none.
DISK_DRIVERS = ("virtio-blk", "vhost-user-blk", "scsi-hd", "scsi-block", "scsi-generic", "scsi-disk", "ide-hd", "nvme",
                "usb-storage", "emmc", "sd-card")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Option:
    """One option as given: its name without dashes, its argument (empty for a flag)."""

    name: str
    value: str = ""


def words(raw: bytes) -> tuple[str, ...]:
    """Return the NUL-separated words of /proc/PID/cmdline."""
    return tuple(word.decode("utf-8", "surrogateescape") for word in raw.removesuffix(b"\0").split(b"\0"))


def options(arguments: Sequence[str]) -> tuple[Option, ...]:
    """Return the options of a command line, whose first word is the program."""
    collected = []
    rest = iter(arguments[1:])
    for word in rest:
        if not word.startswith("-") or word == "-":
            continue  # a disk image given by itself
        name = word[1:].removeprefix("-")
        collected.append(Option(name) if name in FLAGS else Option(name, next(rest, "")))
    return tuple(collected)


def daemon_options(arguments: Sequence[str]) -> tuple[Option, ...]:
    """Return the options of a qemu-storage-daemon, which reads them by getopt_long(3): `--name value`, `--name=value`.

    A name may be cut short. Its --monitor comes as what it is to a system emulator: a -qmp on a chardev.
    """
    collected = []
    rest = iter(arguments[1:])
    for word in rest:
        if word == "--":
            break
        if not word.startswith("-") or word == "-":
            continue
        given, equals, value = word.lstrip("-").partition("=")
        names = (
            [given] if given in DAEMON_OPTIONS else [option for option in DAEMON_OPTIONS if option.startswith(given)]
        )
        name = names[0] if len(names) == 1 and word.startswith("--") else given
        if not equals and name not in DAEMON_FLAGS:
            value = next(rest, "")
        if name == "monitor":
            name, value = "qmp", f"chardev:{settings(value, implied='chardev').get('chardev', '')}"
        collected.append(Option(name, value))
    return tuple(collected)


def settings(value: str, implied: str = "") -> dict[str, str]:
    """Return the keys of one `a=b,c=d` argument; `,,` is a comma, a bare key is `on`.

    `implied` is the key of a first word that has none. A JSON object (`-device '{"driver": ...}'`) gives its keys
    flattened with dots, as QEMU's keyval form writes them.
    """
    if value.startswith("{"):
        return _flat_json(value)
    values: dict[str, str] = {}
    for number, part in enumerate(_split(value)):
        key, equals, text = part.partition("=")
        if equals:
            values[key] = text
        elif number == 0 and implied:
            values[implied] = part
        elif part.startswith("no") and part != "node-name":  # the old short form: `nowait`, `noserver`
            values[part[2:]] = "off"
        else:
            values[part] = "on"
    return values


def _split(value: str) -> Iterable[str]:
    part = ""
    pieces = value.split(",")
    number = 0
    while number < len(pieces):
        part += pieces[number]
        if number + 2 < len(pieces) and not pieces[number + 1]:  # an empty piece between two commas: `,,`
            part += ","
            number += 2
            continue
        if part:
            yield part
        part = ""
        number += 1


def _flat_json(value: str) -> dict[str, str]:
    try:
        whole = json.loads(value)
    except (ValueError, RecursionError):
        return {}
    flat: dict[str, str] = {}
    left: list[tuple[str, Any]] = [("", whole)]
    while left:
        prefix, item = left.pop()
        if isinstance(item, dict):
            left.extend((f"{prefix}.{key}" if prefix else str(key), inner) for key, inner in item.items())
        elif isinstance(item, bool):
            flat[prefix] = "on" if item else "off"
        elif isinstance(item, str | int | float):
            flat[prefix] = str(item)
    return flat


def last(given: Iterable[Option], name: str) -> str:
    """Return the argument of the last such option, which is the one that QEMU heeds; empty when there is none."""
    return next((option.value for option in reversed(tuple(given)) if option.name == name), "")


def vm_name(given: Iterable[Option]) -> str:
    """Return the VM's `-name`, empty when it has none."""
    value = last(given, "name")
    return settings(value, implied="guest").get("guest", "") if value else ""


def disks(given: Iterable[Option]) -> int:
    """Return how many disks the guest was started with; hot-plugged ones are not counted."""
    count = 0
    for option in given:
        if option.name in {"hda", "hdb", "hdc", "hdd", "sd"}:
            count += 1
        elif option.name == "drive":
            drive = settings(option.value)
            given_to_a_board = drive.get("if", "ide") not in {"none", "pflash", "floppy", "mtd"}
            count += given_to_a_board and drive.get("media", "disk") != "cdrom"
        elif option.name == "device":
            driver = settings(option.value, implied="driver").get("driver", "")
            count += driver.startswith(DISK_DRIVERS) and not driver.startswith("nvme-subsys")
    return count
