"""Commands for a shell: every word that came from outside is quoted, and stays one word."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from functools import cache

from autopsy.text import visible

# Speaks QMP where nothing is installed for it: prints each answer, passes over greeting and events.
SPEAK = (
    'import socket,sys;s=socket.socket(socket.AF_UNIX);s.connect(sys.argv[1]);f=s.makefile("rw");'
    '[print(q,file=f,flush=True) or print(next(a for a in f if a[2:7] in ("retur","error")),end="")'
    " for q in sys.argv[2:]]"
)


def line(*words: str) -> str:
    """Return the words as one command, quoted as far as they need it."""
    return shlex.join(words)


def both(*commands: str) -> str:
    """Return commands of which each is run only where the one before it succeeded."""
    return " && ".join(filter(None, commands))


def question(command: str, **arguments: object) -> str:
    """Return a QMP command as JSON."""
    return _json({"execute": command, "arguments": arguments}) if arguments else _bare(command)


@cache  # every advice has the same few
def _bare(command: str) -> str:
    return _json({"execute": command})


def _json(message: dict[str, object]) -> str:
    return json.dumps(message, separators=(",", ":"))


def spoken(monitor: str, questions: Iterable[str]) -> str:
    """Return the command that says these to a QMP socket."""
    return line("python3", "-c", SPEAK, monitor, question("qmp_capabilities"), *questions)


def sayable(word: str) -> bool:
    """Tell whether a word can stand in a command that is read by people: nothing in it hides or turns the text."""
    return bool(word) and visible(word) == word and not word.startswith("-")
