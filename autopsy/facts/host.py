"""The host around the VM: pressure, control group, block devices, mounts, what the logs say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime

from autopsy.bundle import layout
from autopsy.bundle.sections import Section
from autopsy.facts.cite import Cite, Fact, Known, Unknown
from autopsy.facts.evidence import Evidence, missing, section_map, text
from autopsy.facts.model.facts import BlockDevice, HostFacts, LogLine, MountFact, Pressure
from autopsy.facts.model.host import MemoryLimit
from autopsy.facts.storage import io_limits
from autopsy.facts.storage.mounts import mounts_told
from autopsy.facts.threads import int_of

PATH = layout.evidence(layout.HOST, layout.HOST_FILES)
AVERAGE = re.compile(r"^(some|full) avg10=([0-9.]+)", re.MULTILINE)
INFLIGHT = re.compile(r"/sys/(?:class/)?block/([^/]+)/inflight")
KERNEL_TIME = re.compile(r"(?:<\d+>)?\[\s*(\d+\.\d+)\]")
SUSPENDED = re.compile(r"/sys/(?:class/)?block/([^/]+)/dm/suspended")

# Fragments first, in lower case: a regular expression of this length costs more on every line than all the rest.
STORAGE_WORDS = (
    "i/o error",
    "blocked for more than",
    "timing out",
    "timeout",
    "rejecting i/o",
    "out of memory",
    "oom-kill",
    "no space left",
    "resetting link",
    "reset controller",
    "not responding",
    "ext4-fs error",
    "xfs_force_shutdown",
    "multipath",
    "libceph",
    "out of data",
    "queue_if_no_path",
    "task abort",
    "soft lockup",
    "rcu_sched",
    "blk_update_request",
    "hung_task",
)
VM_WORDS = ("unexpected disconnect", "re-entrant io", "no space left", "error", "fail", "assert", "warn", "abort")

# Control groups v2 and v1: how much is used, and what limits it, the strictest first; `max` is no number.
USED = ("/memory.current", "/memory.usage_in_bytes")
MEMORY_LIMITS = ("memory.max", "memory.limit_in_bytes", "memory.high")
REACHED = 0.98  # of a limit: the kernel charges pages in batches
MOST_LINES = 40


def gather_host(evidence: Evidence) -> HostFacts:
    """Return what the host step and the kernel's log tell."""
    files = section_map(evidence, layout.HOST, layout.HOST_FILES)
    absent = missing(evidence, layout.HOST, layout.HOST_FILES)

    def without(file: str) -> Unknown:
        """Return what is lacking: the whole evidence, or that file among what it holds."""
        return Unknown(PATH, f"{layout.HOST_FILES} holds no {file} of the VM's control group") if files else absent

    return HostFacts(
        cgroup=_cgroup(files, without("cgroup.events")),
        frozen=_frozen(files, without("cgroup.events and no freezer.state")),
        cpu_limited=_counter(files, "cpu.stat", "nr_throttled", without("cpu.stat")),
        pressure_cpu=_pressure(files, "cpu", without("cpu.pressure")),
        pressure_io=_pressure(files, "io", without("io.pressure")),
        pressure_memory=_pressure(files, "memory", without("memory.pressure")),
        memory_limits=_memory(files, without("memory.current")),
        io_limits=io_limits.gather_io_limits(files, absent),
        aio_in_use=_aio(evidence, files),
        block_devices=_block_devices(files, absent),
        mounts=_mounts(evidence, files, absent),
        log=tuple(_log(evidence, layout.HOST, (layout.DMESG, layout.JOURNAL), STORAGE_WORDS)),
        vm_log=tuple(_log(evidence, layout.HOST, (layout.VM_LOG,), VM_WORDS)),
    )


def _ending(files: Mapping[str, Section], ending: str) -> Section | None:
    """Return the deepest section with that file name: the VM's own group, not its slice's."""
    ours = [section for name, section in files.items() if name.endswith("/" + ending) and not section.error]
    return max(ours, key=lambda section: section.name.count("/"), default=None)


def _cgroup(files: Mapping[str, Section], absent: Unknown) -> Fact[str]:
    for name, section in files.items():
        if name.endswith("/cgroup") and not section.error:
            words = text(section).strip().splitlines()
            unified = next((line for line in words if line.startswith("0::")), words[0] if words else "")
            return Known(unified.rpartition(":")[2], Cite(PATH, section.line, unified))
    events = _ending(files, "cgroup.events")
    return Known(events.name.rpartition("/")[0], Cite(PATH, events.line, events.name)) if events else absent


def _frozen(files: Mapping[str, Section], absent: Unknown) -> Fact[bool]:
    """Tell whether any control group on the way is frozen (cgroup v2's `frozen 1`, v1's freezer.state FROZEN)."""
    seen: Fact[bool] = absent
    for name, section in files.items():
        if section.error:
            continue
        if name.endswith("/cgroup.events"):
            frozen = "frozen 1" in text(section).splitlines()
        elif name.endswith("/freezer.state"):
            frozen = text(section).strip() in {"FROZEN", "FREEZING"}
        else:
            continue
        if frozen or isinstance(seen, Unknown):
            seen = Known(frozen, Cite(PATH, section.line, f"{name}: {' '.join(text(section).split())}"))
        if frozen:
            return seen
    return seen


def _counter(files: Mapping[str, Section], file: str, key: str, absent: Unknown) -> Fact[int]:
    section = _ending(files, file)
    if section is None:
        return absent
    for offset, line in enumerate(text(section).splitlines()):
        words = line.split()
        if len(words) == 2 and words[0] == key and (value := int_of(words[1])) is not None:
            return Known(value, Cite(PATH, section.line + offset, line))
    return Unknown(PATH, f"{section.name} has no {key}")


def _pressure(files: Mapping[str, Section], kind: str, absent: Unknown) -> Fact[Pressure]:
    section = files.get(f"/proc/pressure/{kind}") or _ending(files, f"{kind}.pressure")
    if section is None or section.error:
        return absent
    averages = {name: float(value) for name, value in AVERAGE.findall(text(section))}
    if not averages:
        return Unknown(PATH, f"{section.name} could not be read")
    cite = Cite(PATH, section.line, " ".join(text(section).splitlines()[:2])[:160])
    return Known(Pressure(averages.get("some", 0.0), averages.get("full", 0.0), cite), cite)


def _memory(files: Mapping[str, Section], absent: Unknown) -> Fact[tuple[MemoryLimit, ...]]:
    """Return the limits that the VM's memory groups have reached: of its own, and of those above it."""
    used = {
        name.rpartition("/")[0]: (bytes_used, section)
        for name, section in files.items()
        if name.endswith(USED) and not section.error and (bytes_used := int_of(text(section).strip())) is not None
    }
    reached = []
    for group, (bytes_used, section) in used.items():
        for file in MEMORY_LIMITS:
            limit = files.get(f"{group}/{file}")
            most = int_of(text(limit).strip()) if limit is not None and not limit.error else None
            if limit is not None and most and bytes_used >= most * REACHED:
                cite = Cite(PATH, limit.line, f"{limit.name}: {most}; {section.name}: {bytes_used}")
                reached.append(MemoryLimit(limit.name, group, bytes_used, most, cite))
                break
    return Known(tuple(reached), Cite(PATH)) if used else absent


def _aio(evidence: Evidence, files: Mapping[str, Section]) -> Fact[tuple[int, int]]:
    """Return how many Linux AIO events are reserved on the host, and how many may be."""
    taken = section_map(evidence, layout.PROC_AIO, layout.AIO)
    used = taken.get("sys/fs/aio-nr") or taken.get("/proc/sys/fs/aio-nr") or files.get("/proc/sys/fs/aio-nr")
    most = (
        taken.get("sys/fs/aio-max-nr") or taken.get("/proc/sys/fs/aio-max-nr") or files.get("/proc/sys/fs/aio-max-nr")
    )
    if used is None or most is None:
        return missing(evidence, layout.PROC_AIO, layout.AIO)
    numbers = int_of(text(used).strip()), int_of(text(most).strip())
    path = layout.evidence(layout.PROC_AIO, layout.AIO)
    if numbers[0] is None or numbers[1] is None:
        return Unknown(path, "aio-nr could not be read")
    return Known((numbers[0], numbers[1]), Cite(path, used.line, "aio-nr"))


def _block_devices(files: Mapping[str, Section], absent: Unknown) -> Fact[tuple[BlockDevice, ...]]:
    suspended = {
        match[1]: text(section).strip() == "1"
        for name, section in files.items()
        if (match := SUSPENDED.fullmatch(name))
    }
    listed = _listed(files.get("block-devices"))
    devices = []
    for name, section in files.items():
        if match := INFLIGHT.fullmatch(name):
            counts = [value for word in text(section).split() if (value := int_of(word)) is not None]
            number, fds = listed.get(match[1], ("", ()))
            devices.append(
                BlockDevice(
                    name=match[1],
                    in_flight=sum(counts),
                    suspended=suspended.get(match[1], False),
                    cite=Cite(PATH, section.line, f"{name}: {text(section).strip()}"),
                    number=number,
                    fds=fds,
                )
            )
    return Known(tuple(devices), Cite(PATH)) if devices else absent


def _listed(section: Section | None) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return each device's MAJOR:MINOR and the descriptors that lead to it, by its name."""
    listed: dict[str, tuple[str, tuple[int, ...]]] = {}
    for line in text(section).splitlines() if section is not None else ():
        words = line.split()
        if len(words) < 4 or words[2] != "below":
            continue
        number, fds = listed.get(words[0], (words[1], ()))
        fd = int_of(words[4]) if words[3] == "fd" and len(words) == 5 else None
        listed[words[0]] = (number, fds if fd is None else (*fds, fd))
    return listed


def _mounts(evidence: Evidence, files: Mapping[str, Section], absent: Unknown) -> Fact[tuple[MountFact, ...]]:
    """Return the mounts of the VM's own namespace: from the descriptors' step, else from the host's."""
    for step in (layout.WITNESS, layout.PROC_FDS):
        own = section_map(evidence, step, layout.FDS).get("mountinfo")
        if own is not None and not own.error:
            path = layout.evidence(step, layout.FDS)
            return Known(tuple(mounts_told(path, own.line, text(own))), Cite(path, own.line, "mountinfo"))
    for name, section in files.items():
        if not section.error and name.endswith("/mountinfo"):
            return Known(tuple(mounts_told(PATH, section.line, text(section))), Cite(PATH, section.line, name))
    return absent


def _log(evidence: Evidence, step: str, files: tuple[str, ...], words: tuple[str, ...]) -> Iterator[LogLine]:
    for file in files:
        path = layout.evidence(step, file)
        lines = evidence.read(path).decode("utf-8", "replace").splitlines()
        lowered = ((number, line, line.lower()) for number, line in enumerate(lines, start=1))
        speaking = [(number, line) for number, line, low in lowered if any(word in low for word in words)]
        for number, line in speaking[-MOST_LINES:]:
            yield LogLine(line[:400], Cite(path, number, line[:200]), _at(line, evidence))


def _at(line: str, evidence: Evidence) -> float | None:
    """Return when a line was written, in seconds since the boot: the kernel's log says so, the journal the time."""
    if match := KERNEL_TIME.match(line):
        return float(match[1])
    try:
        written = datetime.fromisoformat(line.split(" ", 1)[0])
        began = datetime.fromisoformat(evidence.manifest.began.utc)
        return evidence.manifest.began.monotonic_ns / 1e9 - (began - written).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return None
