"""Gives everything that tells whose machine it was a name that does not, the same one wherever it stands."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from dataclasses import field
from typing import TypeVar

from autopsy.dataclass import dataclass
from autopsy.redact import patterns as words
from autopsy.redact import secrets
from autopsy.redact.pieces import IDENTITIES, has_keys, pieces
from autopsy.redact.secrets import REMOVED, without_secrets

LEAST_NAME = 3  # a VM called `a` would take every a out of the text
LEAST_PART = 4
# A bundle tells the same frames, states and paths of thread after thread: each is gone through once.
LONGEST_REMEMBERED = 4096  # characters; what is longer stands once
MOST_REMEMBERED = 65_536
Key = TypeVar("Key", str, tuple[str, str])
SHAPES = {
    "mac": "02:00:00:00:{:02x}:{:02x}",
    "uuid": "00000000-0000-4000-8000-{:012x}",
}


@dataclass(slots=True)
class Pseudonyms:
    """`known` maps kind and original to its pseudonym, in the order in which they were met."""

    known: dict[tuple[str, str], str] = field(default_factory=dict)
    kept: frozenset[str] = frozenset()
    _names: dict[str, str] = field(default_factory=dict)
    _count: Counter[str] = field(default_factory=Counter)
    _pattern: re.Pattern[str] | None = None
    _made: set[str] = field(default_factory=set)
    _texts: dict[str, str] = field(default_factory=dict)
    _unchanged: frozenset[str] = frozenset()
    _plain_lines: set[str] = field(default_factory=set)
    _keys: dict[str, str] = field(default_factory=dict)
    _values: dict[tuple[str, str], str] = field(default_factory=dict)

    def of(self, kind: str, original: str) -> str:
        """Return the pseudonym of an original, the same one for every kind of thing with that very name."""
        if not original or original in self._made or original.startswith(REMOVED):
            return original
        if (kind, original) not in self.known:
            made = self._names.get(original.lower()) or self._new(kind, original)
            self.known[kind, original] = made
            self._made.add(made)
        return self.known[kind, original]

    def name(self, kind: str, original: str) -> str:
        """Return the pseudonym of a name, which every text loses from now on unless it is too common a word."""
        original = original.strip("\"'<>")
        made = self.of(kind, original)
        least = LEAST_PART if kind == "path" else LEAST_NAME
        if len(original) >= least and original.lower() not in words.TOO_COMMON and not original.isdigit():
            self._names.setdefault(original.lower(), made)
        return made

    def learned(self) -> None:
        """Take note that all has been seen once: the next pass replaces every name that this one met, anywhere."""
        self._unchanged = frozenset(text for text, made in self._texts.items() if text == made)
        for remembered in (self._texts, self._keys, self._values):
            remembered.clear()
        self._plain_lines.clear()
        self._pattern = re.compile(rf"(?<![A-Za-z0-9])(?:{_trie(list(self._names))})(?![A-Za-z0-9])", re.IGNORECASE)

    def names_stand_in(self, data: bytes) -> bool:
        """Return whether one of the names may stand in a file; "yes" where that cannot be told quickly."""
        if not data.isascii() or not all(name.isascii() for name in self._names):
            return True
        letters = data.decode("ascii").lower()
        return any(_stands_in(name, letters) for name in self._names if name in letters)

    def table(self) -> dict[str, dict[str, str]]:
        """Return pseudonyms and originals, by kind."""
        originals: dict[str, dict[str, str]] = {}
        for (kind, original), made in self.known.items():
            originals.setdefault(kind, {})[made] = original
        return originals

    def _new(self, kind: str, original: str) -> str:
        self._count[kind] += 1
        number = self._count[kind]
        if kind in SHAPES:
            return SHAPES[kind].format(*divmod(number, 256)) if kind == "mac" else SHAPES[kind].format(number)
        if kind == "ipv4":
            return str(ipaddress.IPv4Address("198.18.0.0") + number)  # RFC 2544: of no network that is
        if kind == "ipv6":
            return str(ipaddress.IPv6Address("2001:db8::") + number)
        ending = words.ENDING.search(original) if kind == "path" else None
        return f"{kind}-{number}{ending[0] if ending else ''}"

    def text(self, text: str) -> str:
        """Return a text without whose it was. Lines stay where they are."""
        return "\n".join(map(self._remembered, pieces(text)))

    def is_plain(self, text: str) -> bool:
        """Return whether no line of a text has anything to be hidden; "no" where one may reach over several."""
        lines = [line for line in text.split("\n") if line not in self._plain_lines]
        if has_keys("\n".join(lines)):
            return False
        unusual = lines if self._pattern is not None else words.unusual(lines)
        if any(self._remembered(line, keys=False) != line for line in unusual):
            return False
        if len(self._plain_lines) < MOST_REMEMBERED:
            self._plain_lines.update(lines)
        return True

    def _remembered(self, text: str, *, keys: bool = True) -> str:
        if len(text) > LONGEST_REMEMBERED:
            return self._without_names(text)
        made = self._texts.get(text)
        if made is None:
            # What the patterns leave of a text is the same in the second pass: it has only more names to look for.
            same = text in self._unchanged
            made = self._known_by_name(text) if same else self._without_names(text, keys=keys)
            _remember(self._texts, text, made)
        return made

    def _without_names(self, text: str, *, keys: bool = True) -> str:  # noqa: C901, PLR0912 - one pattern after another
        """Put the text through every pattern for which it has what that cannot do without."""
        text = without_secrets(text, has_keys=keys)
        letters = secrets.small(text)
        if "://" in text:
            text = words.URL.sub(self._url, text)
        if "@" in text:
            text = secrets.EMAIL.sub(lambda match: self.of("user", match[0]), text)
        if secrets.holds(letters, secrets.OF_IQN):
            text = secrets.IQN.sub(lambda match: self.name("iqn", match[0]), text)
        if ":" in text and _has_a_word_of(secrets.LENGTH_OF_WWN, text):
            text = secrets.WWN.sub(lambda match: self.of("wwn", match[0].lower()), text)
        if keys and secrets.holds(letters, IDENTITIES):
            text = words.IDENTITY_WORD.sub(self._identity, text)
        if "-" in text and _has_a_word_of(words.LENGTH_OF_UUID, text):
            text = words.UUID.sub(lambda match: self.of("uuid", match[0].lower()), text)
        if (":" in text or "-" in text) and _has_a_word_of(words.LENGTH_OF_MAC, text):
            text = words.MAC.sub(lambda match: self.of("mac", match[0].lower()), text)
        if ":/" in text:
            text = words.NFS.sub(lambda match: f"{self.host(match['host'])}:", text)
        if "//" in text:
            text = words.CIFS.sub(lambda match: f"//{self.host(match['host'])}", text)
        if "." in text:
            text = words.IPV4.sub(lambda match: self._ip("ipv4", match[0]), text)
        if text.count(":") > 1:
            text = words.IPV6.sub(lambda match: self._ip("ipv6", match[0]), text)
        if "/" in text:
            text = words.PATH.sub(lambda match: self.path(match[0]), text)
        if "." in text:
            text = words.FQDN.sub(lambda match: self.host(match[0]), text)
        if _has_a_word_of(words.SHORTEST_HEX, text):
            text = words.LONG_HEX.sub(
                lambda match: match[0] if match[0] in self.kept else self.of("hex", match[0]), text
            )
        if _has_a_word_of(words.SHORTEST_OPAQUE, text):
            text = words.OPAQUE.sub(self._opaque, text)
        return self._known_by_name(text)

    def _known_by_name(self, text: str) -> str:
        """Return a text without the names that the pass before met."""
        if self._pattern is not None and self._names:
            text = self._pattern.sub(lambda match: self._names[match[0].lower()], text)
        return text

    def key(self, name: str) -> str:
        """Return a key of JSON, which a monitor or a configuration may have made of a name."""
        made = self._keys.get(name)
        if made is None:
            made = _remember(self._keys, name, name if words.KEY.fullmatch(name) else self.whole(name))
        return made

    def value(self, key: str, value: str) -> str:
        """Return what stands behind a key, be it in JSON, on a command line or in a configuration."""
        if len(value) > LONGEST_REMEMBERED:
            return self._value(key, value)
        made = self._values.get((key, value))
        if made is None:
            made = _remember(self._values, (key, value), self._value(key, value))
        return made

    def _value(self, key: str, value: str) -> str:
        if secrets.SECRET_ID.search(key):
            return self.text(value)
        if secrets.KEY.search(key):
            return REMOVED if value else value
        if words.IDENTITY_KEY.search(key) and value and not value.startswith(("/", "json:")) and not value.isdigit():
            return self.host(value) if "host" in key or "server" in key else self.identity(key, value)
        return self.whole(value)

    def identity(self, key: str, value: str) -> str:
        """Return the pseudonym of a name of somebody or something, empty or common words as they are."""
        if value.lower() in words.TOO_COMMON | words.WORDS or value in {"on", "off", "auto"}:
            return value
        kind = re.sub(r"[^a-z]", "", key.rpartition(".")[2].lower()) or "name"
        return self.name(kind if kind not in SHAPES else "name", value)

    def whole(self, value: str) -> str:
        """Return a value that may be a path as a whole, with whatever characters are in it."""
        if value.startswith("/") and "\n" not in value and len(value) < 4096:
            deleted = " (deleted)" if value.endswith(" (deleted)") else ""
            return self.path(value.removesuffix(deleted)) + deleted
        return self.text(value)

    def host(self, name: str) -> str:
        """Return the pseudonym of a host, by name or by address."""
        if (
            not name
            or name in {"localhost", "localhost.localdomain", "*"}
            or name.lower() in words.NO_HOSTS | words.WORDS
        ):
            return name
        plain = name.strip("[]")
        try:
            kind = "ipv6" if ipaddress.ip_address(plain).version == 6 else "ipv4"
        except ValueError:
            return self.name("host", name)
        made = self._ip(kind, plain)
        return f"[{made}]" if name.startswith("[") else made

    def path(self, path: str) -> str:
        """Return a path with pseudonyms for its parts that are not everybody's: what lies below what can be seen."""
        if path.startswith(words.PUBLIC):
            return path
        return "/".join(self._part(part) for part in path.split("/"))

    def _part(self, part: str) -> str:
        if not part or part.lower() in words.WORDS or words.COMPONENT.fullmatch(part) or part in self._made:
            return part
        if words.UUID.fullmatch(part):
            return self.of("uuid", part.lower())
        special = len(part) > 8 or not part.isalpha() or not part.islower()
        return self.name("path", part) if special else self.of("path", part)

    def _identity(self, match: re.Match[str]) -> str:
        value = match["value"]
        if value.startswith("/") or value.lower().strip("\"'<>") in words.TOO_COMMON | words.WORDS or value.isdigit():
            return match[0]
        return f"{match['key']}{self.name('name', value)}"

    def _url(self, match: re.Match[str]) -> str:
        user = f"{REMOVED}@" if match["user"] else ""
        query = f"?{self._query(match['query'][1:])}" if match["query"] else ""
        path = self.path(match["path"]) if match["path"] else ""
        return f"{match['scheme']}://{user}{self.host(match['host'])}{match['port'] or ''}{path}{query}"

    def _query(self, query: str) -> str:
        """Return a query without values, but for the path of the socket that storage is behind."""
        pairs = (pair.partition("=") for pair in query.split("&"))
        return "&".join(
            f"{key}{equals}{self.path(value) if key == 'socket' else REMOVED}" for key, equals, value in pairs
        )

    def _ip(self, kind: str, address: str) -> str:
        try:
            known = ipaddress.ip_address(address)
        except ValueError:  # a time of day, a PCI address, a version
            return address
        if known.is_loopback or known.is_unspecified:
            return address
        return self.of(kind, str(known))

    def _opaque(self, match: re.Match[str]) -> str:
        if match[0].startswith("_Z") or match[0] in self.kept:
            return match[0]
        return self.of("opaque", match[0])


def _has_a_word_of(length: int, text: str) -> bool:
    """Return whether so many characters stand in a text without a space: a line of numbers has no such word."""
    return len(text) >= length and max(map(len, text.split()), default=0) >= length


def _stands_in(name: str, letters: str) -> bool:
    """Return whether a name that is somewhere in a text in small letters stands by itself anywhere in it."""
    places = re.compile(f"{re.escape(name)}(?![a-z0-9])").finditer(letters)
    return any(not match.start() or not letters[match.start() - 1].isalnum() for match in places)


def _remember(known: dict[Key, str], original: Key, made: str) -> str:
    if len(known) >= MOST_REMEMBERED:
        known.clear()
    known[original] = made
    return made


def _trie(names: list[str]) -> str:
    """Return a pattern of all names, the longest first, that looks at each character once."""
    tree: dict[str, dict] = {}  # type: ignore[type-arg]  # a tree of itself
    for name in names:
        here = tree
        for character in name:
            here = here.setdefault(character, {})
        here[""] = {}
    return _branches(tree) if tree else "(?!)"


def _branches(tree: dict[str, dict]) -> str:  # type: ignore[type-arg]  # likewise
    options = []
    for first in sorted(branch for branch in tree if branch):
        ahead = re.escape(first)
        below = tree[first]
        while len(below) == 1 and "" not in below:
            ((following, below),) = below.items()
            ahead += re.escape(following)
        options.append(ahead + (_branches(below) if set(below) - {""} else ""))
    return f"(?:{'|'.join(options)}){'?' if '' in tree else ''}"
