"""Where metrics are served: an address of this host alone, or a socket that has a path."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import stat
from pathlib import Path

from autopsy.dataclass import dataclass
from autopsy.errors import UsageError
from autopsy.files import private

UNIX = "unix:"
FORM = "say for example --listen 127.0.0.1:9719, or --listen unix:/run/autopsy/watch/metrics.sock"
WAITING = 32  # connections that the kernel keeps until we come round
MOST_PATH = 107  # of a socket's name, without its NUL


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A literal address, so that no resolver is asked."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A socket in a folder of ours, for its group and us."""

    path: Path


Address = TcpAddress | UnixAddress


def parse(words: str, *, anywhere: bool) -> Address:
    """Return the address that an option or the configuration names.

    `anywhere` allows one that other hosts reach.

    Raises:
        UsageError: it is none, or other hosts would reach it.
    """
    if words.startswith(UNIX):
        path = words.removeprefix(UNIX)
        if not path.startswith("/") or len(os.fsencode(path)) > MOST_PATH or "\0" in path:
            raise UsageError(words, f"a socket's path is absolute, of {MOST_PATH} bytes at most", remedy=FORM)
        return UnixAddress(Path(path))
    host, colon, port = words.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not (port.isascii() and port.isdecimal()) or int(port) > 0xFFFF:
        raise UsageError(words, "is no address with a port", remedy=FORM)
    try:
        meant = ipaddress.ip_address("127.0.0.1" if bare == "localhost" else bare)
    except ValueError as error:
        raise UsageError(words, f"{bare or 'nothing'} is no IP address", remedy=FORM) from error
    if not meant.is_loopback and not anywhere:
        raise UsageError(
            words,
            "other hosts could read the names and troubles of this host's VMs there",
            remedy=f"{FORM}; or put `anywhere = true` below [metrics] in the configuration file",
        )
    return TcpAddress(str(meant), int(port))


def bind(address: Address) -> socket.socket:
    """Return a listening socket.

    Raises:
        OSError: as socket(2), bind(2) and listen(2) give it; NotPrivate, where the socket's folder is not ours.
    """
    with contextlib.ExitStack() as opened:
        listener = opened.enter_context(socket.socket(_family(address), socket.SOCK_STREAM))
        match address:
            case TcpAddress(host=host, port=port):
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((host, port))
            case UnixAddress(path=path):
                _bind_below(listener, path)
        listener.listen(WAITING)
        listener.settimeout(0)
        opened.pop_all()
    return listener


def _family(address: Address) -> socket.AddressFamily:
    match address:
        case TcpAddress(host=host):
            return socket.AF_INET6 if ":" in host else socket.AF_INET
        case UnixAddress():
            return socket.AF_UNIX


def _bind_below(listener: socket.socket, path: Path) -> None:
    """Bind to a name in a folder of ours, in place of a socket of ours that nobody serves any more."""
    with private.held(path.parent) as folder:
        named = f"/proc/self/fd/{folder}/{path.name}"
        with contextlib.suppress(FileNotFoundError):
            old = os.stat(path.name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISSOCK(old.st_mode) and old.st_uid == os.geteuid() and not _is_served(named):
                os.unlink(path.name, dir_fd=folder)
        before = os.umask(0o117)
        try:
            listener.bind(named)
        finally:
            os.umask(before)


def _is_served(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as asking:
        try:
            asking.connect(path)
        except ConnectionRefusedError:
            return False
        except OSError:  # it is full, or not ours to say: somebody is there
            return True
        return True
