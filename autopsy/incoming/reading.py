"""Reads files that somebody gave for what they hold, whatever they are called: this runs where it can do no harm."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from signal import Signals
from typing import IO, cast

from autopsy.bundle import layout
from autopsy.incoming import core_file, streams, zip_archive
from autopsy.incoming.apport import APPORT, COREDUMP, Base64Lines
from autopsy.incoming.material import CoreFound, FileOutcome, Material
from autopsy.incoming.stacks.gdb_text import Scan
from autopsy.incoming.stacks.pasted import Paste
from autopsy.incoming.streams import HEAD, MOST_TEXT, Stream
from autopsy.incoming.texts.beside import Beside
from autopsy.incoming.texts.log_lines import unfolded
from autopsy.incoming.texts.quoted_printable import SIGN, undone

MOST_LAYERS = 3  # of compression around one file
MOST_MEMBERS = 100_000
MOST_OF_MEMBER = 8 << 20  # bytes of one file of a host's report
MOST_OF_ARCHIVE = 8 << 30
MOST_OF_ZIP = 256 << 20  # bytes of a zip archive inside of something else
MOST_DEEP = 3
MOST_NOTES = 100
ASSERTION = "Assertion `"
WORTH = (  # what a text of use has in it
    *(b"#0 ", b"#1 ", b"qemu", b"/kvm", b" blocked for more than ", b'"return"', b"VM status: ", b"Cache mode: "),
    *(b": rd_bytes=", b"<domain ", b"scsihw: ", b"memory: ", b" VMID ", b'"stacktrace"', b"dumped core"),
)
COMMAND_LINE = "a command line of QEMU"
MORE_TEXT = f"there is more text than {MOST_TEXT >> 20} MiB: files that speak of QEMU were left out after that"
KNOWN = {
    "nothing": "an empty file",
    "elf": "an ELF file, but no core",
    "qcow2": "a disk image (qcow2)",
    "kdump": "a dump of a guest or a kernel (kdump)",
    "7z": "a 7z archive: unpack it first",
    "rar": "a RAR archive: unpack it first",
    "binary": "binary data of no kind that is known",
}


class ImportReading:
    """The files of one import on their way through; `core_to` is an open file that a core goes to."""

    def __init__(self, core_to: int, name: str = "") -> None:
        self.core_to = core_to
        self.name = name
        self.scan = Scan()
        self.beside = Beside()
        self.core: CoreFound | None = None
        self.left = MOST_TEXT
        self.depth = 0  # of archives inside of one another
        self.notes: list[str] = []

    def take(self, descriptor: int) -> FileOutcome:
        """Read one file."""
        return self._stream(_buffered(descriptor), descriptor, 0)

    def _stream(self, stream: IO[bytes], descriptor: int | None, layer: int) -> FileOutcome:
        head = _head(stream)
        kind = streams.kind_of(head) if head else "nothing"
        if layer < MOST_LAYERS:
            again = _buffered(descriptor) if descriptor is not None else _Joined(head, stream)
            if (inner := streams.unpacked(cast("IO[bytes]", again), kind)) is not None:
                return self._unpacked(inner, layer)
        if kind == "elf" and core_file.is_core(head):
            return self._core(head, stream, descriptor)
        if kind in {"tar", "zip"}:
            tarred = _members(cast("IO[bytes]", _Joined(head, stream)), self.notes)
            return self._archive(tarred if kind == "tar" else self._zip(head, stream, descriptor))
        if kind == "text":
            return self._readable(head, stream, layer)
        if b"\0" in head and self._command_line(head):
            return FileOutcome(what=COMMAND_LINE, of_use=True)
        return FileOutcome(what=KNOWN.get(kind, f"something compressed ({kind})"), of_use=False)

    def _unpacked(self, inner: streams.Unpacked, layer: int) -> FileOutcome:
        seen = self._stream(cast("IO[bytes]", io.BufferedReader(inner, streams.PIECE)), None, layer + 1)
        if not inner.broken:
            return seen
        what = f"{seen.what}, " if seen.of_use else "a file that "
        return FileOutcome(what=f"{what}could not be read to its end ({inner.broken})"[:500], of_use=seen.of_use)

    def _readable(self, head: bytes, stream: IO[bytes], layer: int) -> FileOutcome:
        if layer < MOST_LAYERS and (COREDUMP in head or head.startswith(APPORT)):
            return self._apport(head, stream, layer)
        if self.depth:
            return self._sifted(head, stream) or FileOutcome(what="text of others", of_use=False)
        return self._text(head, stream, min(MOST_TEXT, self.left))

    def _apport(self, head: bytes, stream: IO[bytes], layer: int) -> FileOutcome:
        """Read Ubuntu's crash file: what is said of the process, and then the core, which may come late."""
        while COREDUMP not in head and len(head) < MOST_OF_MEMBER and (data := stream.read(HEAD)):
            head += data
        said, core, start = head.partition(COREDUMP)
        text = self._text(said, io.BytesIO(), min(MOST_TEXT, self.left))
        if not core:
            return text
        coded = Base64Lines(cast("IO[bytes]", _Joined(start, stream)))
        inside = self._stream(cast("IO[bytes]", io.BufferedReader(coded, streams.PIECE)), None, layer + 1)
        kinds = [outcome.what for outcome in (inside, text) if outcome.of_use]
        return FileOutcome(what=", ".join(kinds), of_use=True) if kinds else inside

    def _command_line(self, head: bytes) -> bool:
        """Take /proc/PID/cmdline as the kernel gives it."""
        words = tuple(word.decode("utf-8", "replace") for word in head.rstrip(b"\0").split(b"\0"))
        return len(head) < HEAD and self.beside.commands.take_words(words)

    def _core(self, head: bytes, stream: IO[bytes], descriptor: int | None) -> FileOutcome:
        if self.core is not None:
            return FileOutcome(what="another core: one is examined at a time", of_use=False)
        try:
            self.core = core_file.take_core(head, stream, descriptor, self.core_to)
        except core_file.NoCore as error:
            return FileOutcome(what=f"a core that cannot be examined: {error}", of_use=False)
        self.notes += self.core.notes
        return FileOutcome(what="a core", of_use=True)

    def _text(self, head: bytes, stream: IO[bytes], most: int) -> FileOutcome:
        kinds: dict[str, None] = {}
        notes: list[str] = []
        before = self.scan.frames
        self.scan.end_of_file()
        crashes = len(self.scan.crash)
        lines = streams.lines(head, stream, max(1, most), notes)
        for line in undone(lines) if SIGN in head else lines:
            self.left -= len(line)
            for piece in unfolded(line):
                if self.scan.feed(piece):
                    self.beside.json.stop()
                elif what := self.beside.feed(piece):
                    kinds[what] = None
        self.scan.end_of_file()
        self.beside.stop()
        self.notes += notes
        if self.scan.frames > before:
            kinds = {"a backtrace": None, **kinds}
        if len(self.scan.crash) > crashes:
            kinds["how QEMU crashed"] = None
        if kinds:
            return FileOutcome(what=", ".join(kinds), of_use=True)
        return FileOutcome(what="text without a stack, a core or anything else of QEMU's that is known", of_use=False)

    def _zip(self, head: bytes, stream: IO[bytes], descriptor: int | None) -> Iterator[tuple[str, IO[bytes]]]:
        """Yield the files of a zip archive, which is sought in: one inside of something else is read as a whole."""
        whole: IO[bytes] = io.BytesIO(head + stream.read(MOST_OF_ZIP)) if descriptor is None else _buffered(descriptor)
        return zip_archive.members(whole, MOST_MEMBERS, MOST_OF_ARCHIVE, self.notes)

    def _archive(self, members: Iterator[tuple[str, IO[bytes]]]) -> FileOutcome:
        """Read a report of a host, member by member: what each is, its content says."""
        kinds: dict[str, None] = {}
        count = 0
        broken = ""
        if self.depth >= MOST_DEEP:
            return FileOutcome(what=f"an archive inside of {self.depth} others, which is not read", of_use=False)
        self.depth += 1
        try:
            for name, member in members:
                count += 1
                if name == layout.MANIFEST and count == 1:
                    return FileOutcome(what="a bundle of autopsy's own: `autopsy analyze` reads it", of_use=False)
                seen = self._guarded(member)
                if seen is not None and seen.of_use:
                    kinds[seen.what] = None
        except Exception as error:  # noqa: BLE001 - a stranger's file may break any reader; what was read counts
            broken = f", damaged or cut short ({type(error).__name__}: {error})"[:200]
        finally:
            self.depth -= 1
        if not kinds:
            what = f"an archive of {count} files, and nothing of QEMU's that is known in them{broken}"
            return FileOutcome(what=what, of_use=False)
        return FileOutcome(what=f"an archive of {count} files with {', '.join(kinds)}"[:500] + broken, of_use=True)

    def _guarded(self, member: IO[bytes]) -> FileOutcome | None:
        """Read one file of an archive. What is broken in it costs the archive's other files nothing."""
        try:
            return self._member(member)
        except Exception as error:  # noqa: BLE001 - a stranger's file may break any reader, and the next may be whole
            if len(self.notes) < MOST_NOTES:
                note = f"a file of the archive was not read to its end: {type(error).__name__}: {error}"
                self.notes.append(note[:200])
            return None

    def _member(self, member: IO[bytes]) -> FileOutcome | None:
        head = _head(member)
        kind = streams.kind_of(head)
        if kind == "text":
            return self._sifted(head, member)
        if kind in {"elf", "zip", *streams.COMPRESSED}:
            joined = cast("IO[bytes]", io.BufferedReader(_Joined(head, member), streams.PIECE))
            return self._stream(joined, None, 1)
        if kind == "binary" and self._command_line(head):
            return FileOutcome(what=COMMAND_LINE, of_use=True)
        return None

    def _sifted(self, head: bytes, stream: IO[bytes]) -> FileOutcome | None:
        """Read a text of a host's report if it speaks of QEMU at all: most of them do not, and room is limited."""
        data = head + _upto(stream, MOST_OF_MEMBER - len(head))
        if not any(word in data for word in WORTH):
            return None
        if self.left <= 0:
            if MORE_TEXT not in self.notes:
                self.notes.append(MORE_TEXT)
            return None
        return self._text(data, io.BytesIO(), min(MOST_OF_MEMBER, self.left))

    def end(self, seen: Sequence[FileOutcome]) -> Material:
        """Return all that was found. ABRT's own backtrace, without thread numbers, counts where there is no other."""
        for stack in self.beside.stacks if not self.scan.frames and self.core is None else ():
            self.scan.take(stack)
        self.scan.crash += [crash for crash in self.beside.crashes if not self.scan.crash]
        paste = self.scan.end()
        tids = {thread.tid for look in paste.looks for thread in look.threads}
        pids = tids | ({self.core.pid} if self.core else set())
        program = self.core.command if self.core else paste.program
        if program and not self.beside.commands.found:
            self.beside.commands.feed(program)
        machines, doubts = self.beside.machines(self.name, pids)
        files = self.beside.files(machines[0] if machines else None, tids)
        notes = (*self.notes, *doubts, *self.beside.kernel.notes, *paste.notes)
        return Material(
            paste=paste,
            seen=tuple(seen),
            core=self.core,
            machines=machines,
            files=files,
            notes=notes,
            crash=self._crash(paste),
            qemu_version=self.beside.versions.only,
        )

    def _crash(self, paste: Paste) -> str:
        """Say how QEMU crashed, if it did: the signal, the thread, and the assertion's text where somebody has it."""
        core = self.core
        words = [f"{Signals(core.signal).name} in thread {core.signal_tid}"] if core and core.signal else []
        words += paste.crash[:2]
        if words or paste.crash:
            words += [line.strip() for line in self.beside.log if ASSERTION in line][-1:]
        return "; ".join(dict.fromkeys(words))[:500]


class _Joined(io.RawIOBase):
    """What was read of a stream already, and then the rest of it."""

    def __init__(self, head: bytes, stream: IO[bytes]) -> None:
        self.head, self.stream = head, stream

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: object) -> int:
        """Fill the buffer."""
        view = memoryview(cast("bytearray", buffer))
        data = self.head[: len(view)] if self.head else self.stream.read(len(view))
        self.head = self.head[len(data) :]
        view[: len(data)] = data
        return len(data)


def _buffered(descriptor: int) -> IO[bytes]:
    return cast("IO[bytes]", io.BufferedReader(Stream(descriptor), streams.PIECE))


def _head(stream: IO[bytes]) -> bytes:
    return _upto(stream, HEAD)


def _upto(stream: IO[bytes], most: int) -> bytes:
    """Return the next bytes, as many as there are up to `most`."""
    read = bytearray()
    while len(read) < most and (data := stream.read(most - len(read))):
        read += data
    return bytes(read)


def _members(stream: IO[bytes], notes: list[str]) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield the regular files of an archive, within bounds."""
    total = 0
    with tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 16) as archive:
        for number, entry in enumerate(archive):
            total += max(0, entry.size)
            if number >= MOST_MEMBERS or total > MOST_OF_ARCHIVE:
                notes.append(
                    f"the archive was read for {number} files, {MOST_OF_ARCHIVE >> 30} GiB at most, and no further"
                )
                return
            member = archive.extractfile(entry) if entry.isreg() else None
            if member is not None:
                yield entry.name, member


def read_evidence(descriptors: Sequence[int], core_to: int, name: str = "") -> Material:
    """Return what the files hold, of the VM `name` where many are told of; a core among them goes to `core_to`.

    What one of them does to its reader is told, and costs the others nothing.
    """
    reading = ImportReading(core_to, name)
    seen = []
    for descriptor in descriptors:
        try:
            seen.append(reading.take(descriptor))
        except Exception as error:  # noqa: BLE001 - a stranger's file may break any reader, and the next may be whole
            what = f"a file that could not be read to its end ({type(error).__name__}: {error})"
            seen.append(FileOutcome(what=what, of_use=reading.scan.frames > 0))
    return reading.end(seen)
