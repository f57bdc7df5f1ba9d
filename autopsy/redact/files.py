"""Takes one file of a bundle apart as what it is, and puts it together again without whose machine it was."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from autopsy.bundle import layout
from autopsy.bundle.manifest import Imported, Manifest
from autopsy.bundle.sections import Section, parse, render
from autopsy.redact import patterns as words
from autopsy.redact import secrets
from autopsy.redact.pseudonyms import Pseudonyms
from autopsy.redact.secrets import REMOVED
from autopsy.redact.unchanged import is_of_a_task, json_is_plain, tasks_are_plain

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
# Words of a closed vocabulary, and names of functions.
JSON_KEPT = frozenset(
    """
    words build_id function near symbol outcome kind how state doing call since_first family symbols driver drv type
    status main_state main_wchan io-status execute question wchan qom-type under transport protocol architecture
    """.split()  # noqa: SIM905 - words read best as words
)
MAPS_LINE = re.compile(r"^([0-9a-f]+-[0-9a-f]+ [rwxsp-]{4} [0-9a-f]+ [0-9a-f]+:[0-9a-f]+ \d+ +)(/.*)$", re.MULTILINE)
STORAGE_LINE = re.compile(r"^(\s+)([\w-]+)(\s+)(\S.*)$", re.MULTILINE)
CONFIG_LINE = re.compile(r"^(\s*[\w-]+)(\s*:\s*)(.*)$", re.MULTILINE)
COMMENT = re.compile(r"^(\s*#).+$", re.MULTILINE)

Keep = Callable[[str], bool]


def left_out(name: str) -> bool:
    """Return whether a file is no part of a redacted bundle: memory, the binary, random numbers, what nobody knows."""
    return name.rpartition("/")[2] not in KNOWN or not name.startswith("evidence/")


def redacted(name: str, data: bytes, hide: Pseudonyms, keep: Keep) -> bytes:
    """Return a file's bytes without whose they were, with as many lines as before.

    `keep` says of a line of a log whether a diagnosis could rest on it: the others are emptied.
    """
    file = name.rpartition("/")[2]
    if file.endswith(".json"):
        return data if json_is_plain(data, hide, JSON_KEPT) else _json(data, hide)
    if file.endswith(".jsonl"):
        return b"\n".join(_json(line, hide) for line in data.split(b"\n"))
    if data.startswith(b"==> ") and render(sections := tuple(parse(data))) == data:
        return render(_sections(file, sections, hide, keep))
    if file in LOGS:
        return _encoded(_log(_decoded(data), hide, keep))
    if file == layout.CMDLINE:
        return command_line(data, hide)
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


def _sections(file: str, sections: Sequence[Section], hide: Pseudonyms, keep: Keep) -> Iterable[Section]:
    plain = file == layout.TASKS and tasks_are_plain(sections, hide)
    for section in sections:
        if plain and is_of_a_task(section):
            yield section
            continue
        name = hide.whole(section.name)
        data = _section(file, section, hide, keep)
        yield Section(name, data, hide.text(section.error) if section.error else "")


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


def command_line(data: bytes, hide: Pseudonyms) -> bytes:
    """Return NUL-separated words of a command line, without secrets."""
    kept: list[bytes] = []
    before = b""
    for word in data.split(b"\0"):
        if before in words.DROPPED_OPTIONS:
            kept.append(REMOVED.encode())
        else:
            kept.append(_encoded(_word(_decoded(word), _decoded(before), hide)))
        before = word
    return b"\0".join(kept)


def _word(word: str, before: str, hide: Pseudonyms) -> str:
    if word.startswith("{"):
        try:
            return msgspec.json.encode(_walk(msgspec.json.decode(word), "", hide)).decode()
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return hide.text(word)
    if secrets.KEY.search(before.lstrip("-")) and before.startswith("-"):
        return REMOVED
    word = secrets.without_secrets(word)
    secret = before == "-object" and "secret" in word.partition(",")[0]
    parts = []
    for place, part in enumerate(re.split(r"(?<!,),(?!,)", word)):
        key, equals, value = part.partition("=")
        if not equals:
            parts.append(hide.name("vm", part) if before == "-name" and not place else hide.whole(part))
        elif secret and key == "data":
            parts.append(f"{key}={REMOVED}")
        elif before == "-name" and key == "guest":
            parts.append(f"{key}={hide.name('vm', value)}")
        else:
            parts.append(f"{key}={hide.value(key, value)}")
    return ",".join(parts)


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
        return msgspec.json.encode(_walk(msgspec.json.decode(text), "", hide)).decode() + "\n" * text.count("\n")
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
        return _word(value, "", hide)
    return hide.value(key, value)


def _json(data: bytes, hide: Pseudonyms) -> bytes:
    if not data.strip():
        return data
    try:
        whole = _walk(msgspec.json.decode(data), "", hide)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return _encoded(hide.text(_decoded(data)))
    made = msgspec.json.encode(whole)
    if b"\n" in data.strip():
        made = msgspec.json.format(made, indent=1)
    return made + (b"\n" if data.endswith(b"\n") else b"")


def _walk(value: Any, key: str, hide: Pseudonyms) -> Any:  # noqa: ANN401 - JSON is whatever it is
    if isinstance(value, str):
        return value if key in JSON_KEPT else _string(value, key, hide)
    if isinstance(value, list):
        return [_walk(member, key, hide) for member in value]
    if isinstance(value, dict):
        secret = str(value.get("qom-type", value.get("qom_type", ""))).startswith("secret")
        return {
            hide.key(name): REMOVED if secret and name == "data" else _walk(member, name, hide)
            for name, member in value.items()
        }
    return value


def _string(value: str, key: str, hide: Pseudonyms) -> str:
    if value.startswith("json:"):
        try:
            return "json:" + msgspec.json.encode(_walk(msgspec.json.decode(value[5:]), "", hide)).decode()
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return hide.text(value)
    return hide.value(key, value)
