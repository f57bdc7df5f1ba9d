"""One QMP connection through qemu.qmp, held by nobody's promises but our own deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Mapping
from typing import Any, Protocol

from qemu.qmp import ConnectError, ExecuteError, Message, QMPClient, QMPError, Runstate
from qemu.qmp.error import ProtocolError

from autopsy import text
from autopsy.capture.qmp import addressee
from autopsy.dataclass import dataclass
from autopsy.linux import unix_sockets

CLOSE_SECONDS = 0.5
HANG_UP_SECONDS = 0.2
RETRY_SECONDS = 0.05
MOST_BYTES = 8 << 20  # of one line; query-block of a thousand disks is about 3 MiB
MOST_VALUES = 500_000  # in one line: "[],[],…" would otherwise grow to thirty times its size in memory
MOST_DEPTH = 200  # of one answer; a chain of 64 backing files nests 70 deep
MOST_TEXT = 2000  # of QEMU's words in an error
MOST_DROPPED = 8 * MOST_BYTES  # of one line that is too long, until it ends

TOO_BIG = {"class": "TooBig", "desc": f"an answer of more than {MOST_BYTES >> 20} MiB or {MOST_VALUES:,} values"}

# The library logs every message, pretty-printed. Nobody reads it, and an answer can be big.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)


@dataclass(frozen=True, slots=True)
class Answered:
    """QEMU's answer."""

    value: Any


@dataclass(frozen=True, slots=True)
class CommandError:
    """QEMU answered with an error: its class and its words."""

    value: Any


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """Nothing came within the deadline, or (`why`) the connection broke before it did."""

    why: str = ""


@dataclass(frozen=True, slots=True)
class NotAsked:
    """The question did not reach QEMU: what lies between refused it."""

    why: str


Reply = Answered | CommandError | NoAnswer | NotAsked


@dataclass(frozen=True, slots=True)
class Greeted:
    """The monitor is ours. `value` is the greeting, `note` what is worth telling about this way of asking."""

    value: Any
    note: str = ""


@dataclass(frozen=True, slots=True)
class Busy:
    """Somebody else has the monitor's one place."""

    peer: str


@dataclass(frozen=True, slots=True)
class NoGreeting:
    """We are connected, nobody else is, and no greeting comes."""


@dataclass(frozen=True, slots=True)
class Closed:
    """There is no speaking QMP there. `absent` when there is no such socket at all."""

    why: str
    absent: bool = False


Welcome = Greeted | Busy | NoGreeting | Closed


class Transport(Protocol):
    """A way to ask one VM's QMP monitor, one question at a time."""

    @property
    def monitor(self) -> str:
        """Return the name of the monitor in the evidence."""

    @property
    def negotiates(self) -> bool:
        """Return whether qmp_capabilities is ours to say."""

    @property
    def footprint(self) -> str:
        """Return what a question leaves behind in the VM's surroundings, empty when nothing."""

    def held(self) -> bool:
        """Return whether somebody else has the monitor now, without touching it; when it cannot be told, not."""

    def holder(self) -> str:
        """Return who has the monitor now, such as "pvestatd (pid 812)"."""

    async def greet(self, seconds: float) -> Welcome:
        """Connect, and wait for the greeting."""

    async def ask(self, question: str, arguments: Mapping[str, object], seconds: float) -> Reply:
        """Ask one question."""

    async def close(self) -> None:
        """Let go of the monitor, whatever it does."""


class _Client(QMPClient):
    """A QMPClient whose memory does not grow with what the other side sends."""

    # qemu.qmp 0.0.3 reads the limit of a line here; later ones take `readbuflen`.
    _limit = MOST_BYTES

    def __init__(self) -> None:
        super().__init__()
        self.readbuflen = MOST_BYTES
        self.negotiate = False  # it would say both at once, and enable OOB, which nobody here needs

    def _cb_inbound(self, msg: Message) -> Message:
        return msg

    def _cb_outbound(self, msg: Message) -> Message:
        return msg

    async def _do_recv(self) -> Message:
        line = await self._line()
        if not line or values(line) > MOST_VALUES:
            # It costs only the question that it answers: there is never more than one.
            question = next(iter(self._pending), None)
            if question is None:
                raise ProtocolError(f"a message of more than {MOST_BYTES} bytes or {MOST_VALUES} values")
            return Message({"id": question, "error": TOO_BIG})
        try:
            return Message(line)
        except (ProtocolError, ValueError, RecursionError) as error:
            kind = type(error).__name__
        # Raised out here: the library's error holds, and prints, all that was sent.
        raise ProtocolError(f"no QMP message ({kind}): {line[:60]!r}")

    async def _line(self) -> bytes:
        """Return a line; nothing of one that is too long, which is dropped piece by piece."""
        assert self._reader is not None  # noqa: S101 - we are connected: tells the type checker
        dropped = 0
        while True:
            try:
                line = await self._reader.readuntil(b"\n")
            except asyncio.IncompleteReadError as error:
                raise EOFError from error
            except asyncio.LimitOverrunError as error:
                dropped += len(await self._reader.readexactly(error.consumed))
                if dropped > MOST_DROPPED or not self._pending:
                    raise ProtocolError(f"a message of more than {dropped} bytes") from None
            else:
                return b"" if dropped else line

    async def _on_message(self, msg: Message) -> None:
        if "event" in msg:
            return  # the library would keep each of them for a listener that we do not have
        identity = msg.get("id")
        if isinstance(identity, str) and identity in self._pending:
            await super()._on_message(msg)
        elif "error" in msg and "id" not in msg:
            raise ProtocolError(f"QEMU could not read the question: {text.printable(str(msg['error'])[:MOST_TEXT])}")


class SocketMonitor:
    """A QMP monitor on a UNIX socket of the target process."""

    def __init__(self, address: str, reachable: str, pid: int) -> None:
        self._address = address
        self._path = reachable
        self._pid = pid
        self._client = _Client()
        self._socket: socket.socket | None = None

    @property
    def monitor(self) -> str:
        """Return the path as QEMU knows it."""
        return self._address

    @property
    def negotiates(self) -> bool:
        """Return that qmp_capabilities is ours to say."""
        return True

    @property
    def footprint(self) -> str:
        """Return that nothing stays: the connection is closed afterwards."""
        return ""

    def held(self) -> bool:
        """Return whether somebody is connected to the socket, by the kernel's word."""
        return bool(unix_sockets.clients(self._address, self._pid))

    def holder(self) -> str:
        """Return who is connected to the socket; this searches the descriptors of every process."""
        return unix_sockets.names(unix_sockets.clients(self._address, self._pid))

    async def greet(self, seconds: float) -> Welcome:
        """Connect, and wait for the greeting; afterwards close() is due, whatever came of it."""
        if not unix_sockets.listens(self._address, self._pid):
            return Closed("this VM does not listen there", absent=True)
        addressee.enter(self._pid)
        give_up = time.monotonic() + seconds
        self._client = _Client()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(0)
        ours = unix_sockets.inode_of(self._socket)
        try:
            await self._connect(self._socket, give_up)
            addressee.make_sure(self._socket, self._pid)
            async with asyncio.timeout(max(0.0, give_up - time.monotonic())):
                await self._client.connect(self._socket)
        except TimeoutError:
            return self._silent_or_busy(ours)
        except (addressee.ForeignSocket, ConnectError, OSError) as error:
            return _closed(error)
        greeting = self._client.greeting
        return Greeted(plain(greeting._asdict() if greeting else {}))

    async def _connect(self, connection: socket.socket, give_up: float) -> None:
        """Connect by ourselves: asyncio takes the EAGAIN of a full backlog for "on its way"."""
        with addressee.address_of(self._path, self._pid) as address:
            while True:
                try:
                    connection.connect(address)
                except BlockingIOError:
                    if time.monotonic() >= give_up:
                        raise TimeoutError from None
                    await asyncio.sleep(RETRY_SECONDS)
                else:
                    return

    def _silent_or_busy(self, ours: int) -> Welcome:
        others = unix_sockets.clients(self._address, self._pid, ours=ours)
        return Busy(unix_sockets.names(others)) if others else NoGreeting()

    async def ask(self, question: str, arguments: Mapping[str, object], seconds: float) -> Reply:
        """Ask one question; after NoAnswer ask no more."""
        try:
            async with asyncio.timeout(seconds):
                value = await self._client.execute(question, arguments or None)
            return Answered(plain(value))
        except TimeoutError:
            return NoAnswer()
        except ExecuteError as error:
            said = error.error.error
            return CommandError({"class": plain(said.class_[:MOST_TEXT]), "desc": plain(said.desc[:MOST_TEXT])})
        except ProtocolError as error:
            return CommandError({"class": "NotUnderstood", "desc": text.printable(error.error_message)})
        except (QMPError, OSError, EOFError) as error:
            return NoAnswer(f"the connection broke: {await self._cause(error)}")

    async def _cause(self, symptom: Exception) -> str:
        """Return what ended the connection: disconnect() raises what the reader died of."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._client.disconnect()
        except EOFError:
            return "QEMU closed it"
        except Exception as cause:  # noqa: BLE001 - its words are all that is wanted
            return text.of_error(cause)
        return text.of_error(symptom)

    async def close(self) -> None:
        """Hang up, so that the next client gets the monitor even where our question is still unanswered."""
        try:
            if self._client.runstate is not Runstate.IDLE:
                await self._say_goodbye()
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self._client.disconnect()
        except Exception:  # noqa: BLE001, S110 - what the connection died of was told with the question
            pass
        finally:
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)
                self._socket.close()

    async def _say_goodbye(self) -> None:
        """Tell QEMU that nothing more is asked, and read on for a moment until it hangs up by itself.

        What it writes to a socket that is closed leaves a signal (SIGPIPE) pending for good in its monitor's thread,
        where all signals are blocked.
        """
        if self._socket is None or self._client.runstate is not Runstate.RUNNING:
            return
        with contextlib.suppress(TimeoutError, OSError):
            self._socket.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(HANG_UP_SECONDS):
                await self._client.runstate_changed()


def _closed(error: addressee.ForeignSocket | ConnectError | OSError) -> Closed:
    match error:
        case FileNotFoundError():
            return Closed("there is no such socket", absent=True)
        case PermissionError():
            return Closed("permission denied: its socket is for the VM's own user, or CAP_DAC_OVERRIDE")
        case ConnectError():
            return Closed(f"no QMP greeting: {_root(error)}")
        case OSError():
            return Closed(text.printable(error.strerror or str(error)))
        case addressee.ForeignSocket():
            return Closed(str(error))


def _root(error: ConnectError) -> str:
    cause: BaseException = error.exc
    while isinstance(cause, ProtocolError) and isinstance(cause.__cause__, Exception):
        cause = cause.__cause__  # GreetingError wraps what it did not understand
    if isinstance(cause, EOFError):
        return "the other side hung up"
    return text.of_error(cause)


def values(line: bytes) -> int:
    """Return how many values a line of JSON has at most, before it is made into them."""
    return line.count(b",") + line.count(b"[") + line.count(b"{")


def plain(value: Any, depth: int = 0) -> Any:  # noqa: ANN401 - JSON
    """Return JSON that every reader can take: no lone surrogates, no numbers beyond 64 bits, not too deep."""
    match value:
        case str():
            return value if value.isascii() else value.encode("utf-8", "replace").decode()
        case bool() | None | float():
            return value
        case int():
            return value if -(1 << 63) <= value < 1 << 64 else text.printable(hex(value))
        case list() | dict() if depth >= MOST_DEPTH:
            return f"(nested deeper than {MOST_DEPTH})"
        case list():
            return [plain(member, depth + 1) for member in value]
        case _:
            return {plain(key): plain(member, depth + 1) for key, member in value.items()}
