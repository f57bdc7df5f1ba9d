"""What a program that we start is given of our environment: nothing of the caller's."""

from __future__ import annotations

import os

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def ours(**more: str) -> dict[str, str]:
    """Return an environment without the caller's PATH, PYTHON*, LD_*, GDB* and DEBUGINFOD*; `more` comes on top."""
    return {"PATH": PATH, "HOME": "/nonexistent", "LC_ALL": "C.UTF-8", "TERM": "dumb", "TZ": "UTC", **more}


def terminals() -> str:
    """Return the kind of terminal that the caller has, by its name."""
    kind = os.environ.get("TERM", "")
    return kind if kind and all(each.isalnum() or each in "-+." for each in kind) else "dumb"
