"""Takes one file of a bundle apart as what it is, and puts it together again without whose machine it was."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import msgspec
from msgspec.structs import replace

from autopsy.bundle import layout
from autopsy.bundle.manifest import Imported, Manifest
from autopsy.bundle.sections import Section, parse, render
from autopsy.dataclass import dataclass
from autopsy.redact import patterns as words
from autopsy.redact import secrets
from autopsy.redact.command_line import command_line, redacted_word, words_anew
from autopsy.redact.json_pairs import by_pairs
from autopsy.redact.json_values import JSON_KEPT, redacted_json, redacted_line, walk
from autopsy.redact.maps import redacted_maps
from autopsy.redact.pseudonyms import Pseudonyms
from autopsy.redact.runs import DESCRIPTORS, THREADS, ManySections, OneSection, cut
from autopsy.redact.secrets import REMOVED

# What is known, and so can be taken apart: the rest may hold anything.
KNOWN = frozenset(
    {
        *(
            layout.TASKS,
            layout.FDS,
            layout.FUTEXES,
            layout.POLLS,
            layout.MAPS,
            layout.SMAPS,
            layout.CMDLINE,
            layout.FREEZE_RECORD,
        ),
        *(
            layout.QMP,
            layout.GUARD,
            layout.BACKTRACE,
            layout.THREADS,
            layout.COROUTINES,
            layout.COROUTINES_TEXT,
            layout.LOCKS,
        ),
        *(
            layout.MAIN_LOOP,
            layout.EVENTFDS,
            layout.WORKERS,
            layout.MODULES,
            layout.HEAP,
            layout.GDB_LOG,
            layout.SOCKETS,
            layout.IMAGES,
        ),
        layout.LEFT_OUT,
        layout.VIRTQUEUES,
        layout.RING_WORDS,
        layout.RING,
        *(
            layout.SOCKET_ENDS,
            layout.FIFO_OPENINGS,
            layout.PROCESS_WAITS,
            layout.SERVER_LINKS,
            layout.AIO,
            layout.RINGS,
            layout.HOST_FILES,
            layout.DMESG,
            layout.JOURNAL,
            layout.VM_CONFIG,
        ),
        *(layout.VM_LOG, layout.FREEZE_RECORD),
    }
)
LOGS = frozenset({layout.DMESG, layout.JOURNAL, layout.VM_LOG})
MAPS_LINE = re.compile(r"^([0-9a-f]+-[0-9a-f]+ [rwxsp-]{4} [0-9a-f]+ [0-9a-f]+:[0-9a-f]+ \d+ +)(/.*)$", re.MULTILINE)
STORAGE_LINE = re.compile(r"^(\s+)([\w-]+)(\s+)(\S.*)$", re.MULTILINE)
CONFIG_LINE = re.compile(r"^(\s*[\w-]+)(\s*:\s*)(.*)$", re.MULTILINE)
MANY = {layout.TASKS: THREADS, layout.FDS: DESCRIPTORS}
# How a section is called that any process has: there are thousands of them.
PLAIN_NAME = re.compile(r"task/\d{1,10}/[a-z]{4,9}|fd(?:info)?/\d{1,10}", re.ASCII)
COMMENT = re.compile(r"^(\s*#).+$", re.MULTILINE)

Keep = Callable[[str], bool]
Anew = Callable[[], bytes]


def left_out(name: str) -> bool:
    """Return whether a file is no part of a redacted bundle: memory, the binary, random numbers, what nobody knows."""
    return name.rpartition("/")[2] not in KNOWN or not name.startswith("evidence/")


@dataclass(frozen=True, slots=True)
class Looked:
    """A file that was gone through once, before all names were known.

    `parts` are what had nothing to be hidden, and what makes anew what had; none where the whole file is to be gone
    through again. `texts` is all in which a name may stand that such a part has to lose.
    """

    data: bytes
    parts: tuple[bytes | Anew, ...] = ()
    texts: bytes = b""


def look(name: str, data: bytes, hide: Pseudonyms, keep: Keep) -> Looked:
    """Go through a file for the first time, so that all names in it are known."""
    file = name.rpartition("/")[2]
    if (parts := _cut(file, data)) is not None:
        return _look_at_sections(file, data, parts, hide, keep)
    if file.endswith(".json") and (large := by_pairs(data, hide, JSON_KEPT)) is not None:
        return Looked(data, (data,), _encoded(large.texts)) if large.made == data else Looked(data)
    if file.endswith(".jsonl"):
        return _look_at(data, b"\n", ((line, partial(redacted_line, line, hide)) for line in data.split(b"\n")))
    if file == layout.CMDLINE:
        return _look_at(data, b"\0", words_anew(data, hide))
    return Looked(data, (data,), data) if redacted(name, data, hide, keep) == data else Looked(data)


def _look_at(data: bytes, between: bytes, pairs: Iterable[tuple[bytes, Anew]]) -> Looked:
    """Go through the parts of a file, each with what makes it anew."""
    parts: list[bytes | Anew] = []
    plain: list[bytes] = []
    for part, anew in pairs:
        same = anew() == part
        parts += (between, part if same else anew)
        if same:
            plain.append(part)
    return Looked(data, tuple(parts[1:]), between.join(plain))


def look_again(name: str, looked: Looked, hide: Pseudonyms, keep: Keep) -> bytes:
    """Return a file's bytes without whose they were, now that all names are known."""
    if not looked.parts or hide.names_stand_in(looked.texts):
        return redacted(name, looked.data, hide, keep)
    return b"".join(part if isinstance(part, bytes) else part() for part in looked.parts)


def redacted(name: str, data: bytes, hide: Pseudonyms, keep: Keep) -> bytes:  # noqa: PLR0911 - one case a line
    """Return a file's bytes without whose they were, with as many lines as before.

    `keep` says of a line of a log whether a diagnosis could rest on it: the others are emptied.
    """
    file = name.rpartition("/")[2]
    if file.endswith(".json"):
        return redacted_json(data, hide)
    if file.endswith(".jsonl"):
        return b"\n".join(redacted_line(line, hide) for line in data.split(b"\n"))
    if (parts := _cut(file, data)) is not None:
        return _sections(file, parts, hide, keep)
    if file in LOGS:
        return _encoded(_log(_decoded(data), hide, keep))
    if file == layout.CMDLINE:
        return command_line(data, hide)
    if file == layout.MAPS:
        return _encoded(redacted_maps(_decoded(data), lambda text: _text(text, hide)))
    return _encoded(_text(_decoded(data), hide))


def manifest(whole: Manifest, hide: Pseudonyms) -> Manifest:
    """Return the manifest under pseudonyms; what was captured, when and how it went stays."""
    target = whole.target
    monitors = tuple(
        replace(
            monitor,
            address=hide.whole(monitor.address),
            reachable=hide.whole(monitor.reachable),
            held_by=hide.text(monitor.held_by),
        )
        for monitor in target.monitors
    )
    return replace(
        whole,
        options=tuple(_decoded(command_line(_encoded("\0".join(whole.options)), hide)).split("\0")),
        host=replace(whole.host, name=hide.host(whole.host.name), boot_id=hide.text(whole.host.boot_id)),
        target=replace(
            target, name=hide.name("vm", target.name), exe=hide.whole(target.exe), monitors=monitors, domain=None
        ),
        steps=tuple(replace(step, why=hide.text(step.why)) for step in whole.steps),
        notes=tuple(hide.text(note) for note in whole.notes),
        files=(),
        imported=_imported(whole.imported, hide),
    )


def _imported(imported: Imported | None, hide: Pseudonyms) -> Imported | None:
    """Return what was given, without the files' names: they themselves are no part of a redacted bundle."""
    if imported is None:
        return None
    files = tuple(
        replace(file, name=f"file-{number}", sha256="", stored="") for number, file in enumerate(imported.files, 1)
    )
    return replace(imported, files=files, crash=hide.text(imported.crash))


def _decoded(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text(text: str, hide: Pseudonyms) -> str:
    if " /" in text:
        text = MAPS_LINE.sub(lambda match: match[1] + hide.whole(match[2]), text)
    return hide.text(text)


def _log(text: str, hide: Pseudonyms, keep: Keep) -> str:
    lines = (hide.text(line) if keep(line) else REMOVED if line else line for line in text.split("\n"))
    return "\n".join(lines)


def _cut(file: str, data: bytes) -> tuple[ManySections | OneSection, ...] | None:
    """Return the sections of a file, None where it is no file of sections."""
    if file.endswith((".json", ".jsonl")) or not data.startswith(b"==> "):
        return None
    return cut(data, MANY.get(file))


def _look_at_sections(
    file: str, data: bytes, parts: Sequence[ManySections | OneSection], hide: Pseudonyms, keep: Keep
) -> Looked:
    lines = _distinct_lines(parts)
    if lines is None or not hide.is_plain(lines):
        _sections(file, parts, hide, keep, runs_are_plain=False)
        return Looked(data)
    anew = [
        part if isinstance(part, ManySections) else partial(_section_anew, file, part.section, hide, keep)
        for part in parts
    ]
    looked: list[bytes | Anew] = []
    texts = [lines.encode()]
    for part, made in zip(parts, anew, strict=True):
        if isinstance(made, ManySections):
            looked.append(made.data)
        elif made() == part.data:
            looked.append(part.data)
            texts.append(part.data)
        else:
            looked.append(made)
    return Looked(data, tuple(looked), b"\n".join(texts))


def _sections(
    file: str,
    parts: Sequence[ManySections | OneSection],
    hide: Pseudonyms,
    keep: Keep,
    *,
    runs_are_plain: bool | None = None,
) -> bytes:
    if runs_are_plain is None:
        lines = _distinct_lines(parts)
        runs_are_plain = lines is not None and hide.is_plain(lines)
    made: list[bytes] = []
    for part in parts:
        if isinstance(part, OneSection):
            made.append(_section_anew(file, part.section, hide, keep))
        elif runs_are_plain:
            made.append(part.data)
        else:
            made += (_section_anew(file, section, hide, keep) for section in parse(part.data))
    return b"".join(made)


def _distinct_lines(parts: Sequence[ManySections | OneSection]) -> str | None:
    """Return each line of what the kernel told in runs once: they are much alike. None where it is no text."""
    whole = b"\n".join(text for part in parts if isinstance(part, ManySections) for text in part.contents)
    try:
        return "\n".join(dict.fromkeys(whole.decode().split("\n")))
    except UnicodeDecodeError:
        return None


def _section_anew(file: str, section: Section, hide: Pseudonyms, keep: Keep) -> bytes:
    name = section.name if PLAIN_NAME.fullmatch(section.name) else hide.whole(section.name)
    data = _section(file, section, hide, keep)
    return render((Section(name, data, hide.text(section.error) if section.error else ""),))


def _section(file: str, section: Section, hide: Pseudonyms, keep: Keep) -> bytes:  # noqa: PLR0911 - one case a line
    kind = section.name.rpartition("/")[2]
    if kind == "cmdline" and section.name.count("/") and b"\0" in section.data:
        return command_line(section.data, hide)
    text = _decoded(section.data)
    if file in LOGS:
        return _encoded(_log(text, hide, keep))
    if file == layout.VM_CONFIG:
        return _encoded(_configuration(text, hide))
    if section.name.startswith("fd/") or kind in {"exe", "cwd", "root"}:
        return _encoded(hide.whole(text.rstrip("\n")) + text[len(text.rstrip("\n")) :])
    if "net/tcp" in section.name or "net/udp" in section.name:
        text = words.HEX_ADDRESS.sub(lambda match: _hex_address(match[0], hide), text)
    if kind == "cmdline" or section.name == "/proc/cmdline":
        return _encoded(REMOVED + "\n" * text.count("\n"))
    if kind == "comm" and file == layout.TASKS:  # QEMU names its own threads
        return section.data
    return _encoded(_text(text, hide))


def _hex_address(digits: str, hide: Pseudonyms) -> str:
    """Return an address of /proc/net/tcp, which is words in the host's order, under its pseudonym."""
    raw = bytes.fromhex(digits)
    turned = b"".join(raw[start : start + 4][::-1] for start in range(0, len(raw), 4))
    if not any(turned) or turned == b"\x7f\0\0\x01":
        return digits
    made = hide.of("hexaddress", digits)
    return f"{int(made.rpartition('-')[2]):0{len(digits)}X}" if made.startswith("hexaddress-") else made


def _configuration(text: str, hide: Pseudonyms) -> str:
    """Return a domain's XML, VMID.conf or storage.cfg without secrets, descriptions and names."""
    if text.lstrip().startswith("<"):
        text = words.DROPPED_ELEMENTS.sub(
            lambda match: f"{match[1]}{REMOVED}{chr(10) * match[3].count(chr(10))}{match[4]}", text
        )
        text = re.sub(r"<!--.*?-->", lambda match: "\n" * match[0].count("\n"), text, flags=re.DOTALL)
        text = re.sub(
            r"<(name|uuid)>([^<]+)<", lambda match: f"<{match[1]}>{hide.text(hide.name('vm', match[2]))}<", text
        )
        text = words.XML_ATTRIBUTE.sub(
            lambda match: f"{match[1]}={match[2]}{_attribute(match[1], match[3], hide)}{match[2]}", text
        )
        text = re.sub(r"(<qemu:arg value=)(['\"])(.*?)\2", rf"\1\2{REMOVED}\2", text)
        return hide.text(text)
    if not text.lstrip().startswith("{"):
        text = COMMENT.sub(rf"\1{REMOVED}", text)
        text = CONFIG_LINE.sub(lambda match: f"{match[1]}{match[2]}{_setting(match[1].strip(), match[3], hide)}", text)
        text = STORAGE_LINE.sub(lambda match: f"{match[1]}{match[2]}{match[3]}{hide.value(match[2], match[4])}", text)
        return hide.text(text)
    try:
        return msgspec.json.encode(walk(msgspec.json.decode(text), "", hide)).decode() + "\n" * text.count("\n")
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return hide.text(text)


def _attribute(key: str, value: str, hide: Pseudonyms) -> str:
    if key == "name" and value in {"qemu", "raw", "host", "spicevmc", "org.qemu.guest_agent.0"}:
        return value
    if key in {"username", "usage", "pool", "volume", "host", "hostname", "bridge", "network"}:
        return hide.value({"usage": "volume", "bridge": "share", "network": "share"}.get(key, key), value)
    if key == "name" and ("/" in value.strip("/") or secrets.IQN.match(value)) and not value.startswith("/"):
        return hide.name("volume", value)
    return hide.whole(value)


def _setting(key: str, value: str, hide: Pseudonyms) -> str:  # noqa: PLR0911 - one case a line
    if key == "description":
        return REMOVED if value else value
    if key in {"name", "hostname"} and value:
        return hide.name("vm", value)
    if key == "args":
        try:
            split = shlex.split(value)
        except ValueError:
            return REMOVED
        return _decoded(command_line(_encoded("\0".join(split)), hide)).replace("\0", " ")
    if key.startswith("smbios"):
        return REMOVED
    if "," in value or "=" in value:
        return redacted_word(value, "", hide)
    return hide.value(key, value)
