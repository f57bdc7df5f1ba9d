"""How people call what a diagnosis speaks of: the one place where a subject becomes words."""

from __future__ import annotations

import re
from functools import cache

from autopsy.diagnose.diagnosis import Named
from autopsy.facts import subjects
from autopsy.facts.model.facts import Role
from autopsy.facts.subjects import Subject

KIND = re.compile(r"(?<=[a-z])(?=[A-Z])")


def name(subject: Subject) -> str:  # noqa: C901, PLR0911, PLR0912 - one return for each kind of subject
    """Return a subject's name."""
    match subject:
        case subjects.Disk(disk, drive):
            return f"{disk} ({drive})" if drive else disk
        case subjects.Export(export, node):
            return f"export {export} (node {node})" if node else f"export {export}"
        case subjects.Driver(node, driver):
            return f"block driver {driver} (node {node})"
        case subjects.Request(address):
            return f"the request of coroutine {address:#x}"
        case subjects.Place(park):
            noun = park.words.removeprefix("waits for ").removeprefix("waits in ")
            return f"a place where a request {noun}" if noun == park.words else noun
        case subjects.Kernel(wait):
            return f"the host's kernel ({wait})"
        case subjects.ThrottleGroup(group):
            return f"throttle group {group}"
        case subjects.Job(job):
            return f"job {job}"
        case subjects.Thread():
            return _thread(subject)
        case subjects.Lock(address, within):
            return within or f"the mutex at {address:#x}"
        case subjects.Condition(address, within):
            return f"the condition at {address:#x}, in {within}"
        case subjects.Process(pid):
            return f"process {pid}"
        case subjects.Tracer(pid):
            return f"tracer {pid}"
        case subjects.Peer(pid, comm):
            return f"{comm or 'process'} {pid}"
        case subjects.FileSystem(path, fstype, source):
            return f"file system {path} ({fstype} on {source})" if fstype else f"file system {path}"
        case subjects.HostDevice(device):
            return f"block device {device}"
        case subjects.ControlGroup(path):
            return f"cgroup {path}"
        case subjects.VirtualMachine(vm):
            return f"VM {vm}"
        case subjects.Migration():
            return "the migration"
        case subjects.Monitor(vm):
            return f"monitor of {vm}"
        case subjects.Device(words) | subjects.Server(words) | subjects.File(words) | subjects.MonitorClient(words):
            return words


def record(subject: Subject) -> Named:
    """Return a subject as diagnosis.json holds it: its kind beside its name, for names of two kinds can be alike."""
    return Named(kind=_kind(type(subject).__name__), name=name(subject))


@cache
def _kind(of_class: str) -> str:
    return KIND.sub(" ", of_class).lower()


def _thread(subject: subjects.Thread) -> str:
    if subject.role is Role.MAIN:
        return f"the main thread {subject.tid}"
    kind = "kernel worker" if subject.role is Role.KERNEL else "thread"
    return f"{kind} {subject.tid} ({subject.comm})" if subject.comm else f"{kind} {subject.tid}"
