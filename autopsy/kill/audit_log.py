"""Writes down who killed which VM on which evidence, where an auditor looks for it."""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from autopsy import __version__
from autopsy.bundle.manifest import Clocks
from autopsy.bundle.seal import Sealed
from autopsy.files import private
from autopsy.linux import clocks
from autopsy.linux.child import ChildFailed, ChildTimedOut, in_child
from autopsy.target.target import Target
from autopsy.text import printable

FILE_SECONDS = 3.0  # a disk that has just taken a bundle and now hangs must not hold the kill
LOG_SECONDS = 1.0
NOTICE = "<29>"  # facility daemon, severity notice: syslog(3)
NO_LOGIN = 2**32 - 1  # what /proc/self/loginuid says outside of any login


class Person(msgspec.Struct, frozen=True, kw_only=True):
    """Who gave the order: the user, and by what login or sudo they came to be that user. Absent words are empty."""

    uid: int
    user: str
    login: str
    sudo: str


class StuckThread(msgspec.Struct, frozen=True, kw_only=True):
    """A thread that keeps a killed process, and the kernel function that it sleeps in."""

    tid: int
    comm: str
    wchan: str


class KillNote(msgspec.Struct, frozen=True, kw_only=True):
    """What stands beside the bundle. Without `gone` the kill had begun, and nobody lived to write down its end.

    `left` is what the VM left behind: sockets, pidfiles, locks, processes in its cgroup.
    """

    autopsy: str
    when: Clocks
    who: Person
    host: str
    pid: int
    start_ticks: int
    name: str
    manager: str
    exe: str
    bundle: str
    sha256: str
    size: int
    how: str
    gone: bool | None = None
    ms: float = 0.0
    stuck: tuple[StuckThread, ...] = ()
    left: tuple[str, ...] = ()


def note_path(bundle: Path) -> Path:
    """Return where a bundle's kill is written down."""
    return bundle.with_name(f"{bundle.name}.kill.json")


def begun(target: Target, sealed: Sealed) -> KillNote:
    """Return the note as it stands before the kill."""
    record = target.record
    return KillNote(
        autopsy=__version__,
        when=clocks.now(),
        who=_who(),
        host=os.uname().nodename,
        pid=record.pid,
        start_ticks=record.start_ticks,
        name=record.name,
        manager=record.manager,
        exe=record.exe,
        bundle=sealed.path.name,
        sha256=sealed.sha256,
        size=sealed.size,
        how="about to be killed",
    )


def store(kill_note: KillNote, bundle: Path) -> str:
    """Write the note beside the bundle, durably, and return what went wrong; a disk that hangs is given up."""
    path = note_path(bundle)
    return _failure(f"{path.name} could not be written", partial(_store, kill_note, path), FILE_SECONDS)


def tell_journal(kill_note: KillNote, log: Path) -> str:
    """Send the note to the journal as one line, and return what went wrong; a journal that hangs is given up."""
    return _failure("the journal was not told", partial(_log, kill_note, log), LOG_SECONDS)


def _failure(what: str, work: Callable[[], bytes], seconds: float) -> str:
    """Run what returns its trouble in words, if it has any, and return what to say of it."""
    try:
        trouble = in_child(work, seconds).decode()
    except (ChildTimedOut, ChildFailed) as error:
        trouble = str(error)
    return trouble and f"{what}: {trouble}"


def _store(kill_note: KillNote, path: Path) -> bytes:
    """Replace the note durably: whatever happens, a whole one is there."""
    private.publish(path, msgspec.json.format(msgspec.json.encode(kill_note), indent=1) + b"\n")
    return b""


def _log(kill_note: KillNote, log: Path) -> bytes:
    """Send one line to the system's log, in the protocol of syslog(3), whose own function does not tell of failure."""
    who = kill_note.who.login or kill_note.who.sudo or kill_note.who.user
    said = printable(
        f"{kill_note.how}: {kill_note.manager} VM {kill_note.name} (process {kill_note.pid}) by {who},"
        f" evidence {kill_note.bundle} sha256 {kill_note.sha256}",
        most=900,
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as kernel:
        try:
            kernel.connect(str(log))
        except FileNotFoundError:
            return f"nobody listens at {log}".encode()
        kernel.send(f"{NOTICE}autopsy[{os.getppid()}]: {said}".encode())
    return b""


def _who() -> Person:
    return Person(uid=os.getuid(), user=_user(os.getuid()), login=_login(), sudo=os.environ.get("SUDO_USER", ""))


def _login() -> str:
    """Return the user who logged in, whom sudo and su do not change; empty where nobody did."""
    try:
        with open("/proc/self/loginuid", encoding="ascii") as stream:
            uid = int(stream.read())
    except (OSError, ValueError):
        return ""
    return "" if uid == NO_LOGIN else _user(uid)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
