"""Fetches what a debuginfod server has of a build, when the operator named one."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from autopsy.linux.environment import ours

FETCH_SECONDS = 60.0
BUILD_ID = re.compile(r"[0-9a-f]{16,64}")
KINDS = ("debuginfo", "executable")
PROXIES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")


def fetch(url: str, folder: Path, kind: str, build_id: str) -> Path | None:
    """Return the file, in a cache below `folder`, or None where the server has none, or is not to be reached."""
    if not url or kind not in KINDS or not BUILD_ID.fullmatch(build_id):
        return None
    proxies = {name: value for name in PROXIES if (value := os.environ.get(name))}
    try:
        answer = subprocess.run(
            ["debuginfod-find", kind, build_id],
            env=ours(DEBUGINFOD_URLS=url, DEBUGINFOD_CACHE_PATH=str(folder / "debuginfod"), **proxies),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=FETCH_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return Path(os.fsdecode(answer.stdout.strip()))
