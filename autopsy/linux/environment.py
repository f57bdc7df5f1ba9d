"""What a program that we start is given of our environment: nothing of the caller's."""

from __future__ import annotations

import os
import stat
from pathlib import Path

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def ours(**more: str) -> dict[str, str]:
    """Return an environment without the caller's PATH, PYTHON*, LD_*, GDB* and DEBUGINFOD*; `more` comes on top."""
    return {"PATH": PATH, "HOME": "/nonexistent", "LC_ALL": "C.UTF-8", "TERM": "dumb", "TZ": "UTC", **more}


def path() -> str:
    """Return where programs of the host are looked for: first in those of the caller's folders that are root's or ours.

    Nobody else may be able to lay a program there. Some systems have theirs in no folder that we could know.
    """
    named = (os.path.realpath(folder) for folder in os.environ.get("PATH", "").split(":") if os.path.isabs(folder))
    return ":".join(dict.fromkeys((*filter(_is_nobody_elses, named), *PATH.split(":"))))


def _is_nobody_elses(folder: str) -> bool:
    for place in (Path(folder), *Path(folder).parents):
        try:
            status = os.lstat(place)
        except OSError:
            return False
        open_to_others = status.st_mode & 0o022 and not (place != Path(folder) and status.st_mode & stat.S_ISVTX)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid not in {0, os.geteuid()} or open_to_others:
            return False
    return True


def terminals() -> str:
    """Return the kind of terminal that the caller has, by its name."""
    kind = os.environ.get("TERM", "")
    return kind if kind and all(letter.isalnum() or letter in "-+." for letter in kind) else "dumb"
