"""Opens a report in the desktop's browser, where there is a desktop."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from autopsy.errors import UsageError
from autopsy.linux import environment

SECONDS = 10.0
OF_A_DESKTOP = ("DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "HOME")


def open_report(report: Path) -> None:
    """Have xdg-open show the report.

    Raises:
        UsageError: there is no desktop, or it cannot.
    """
    remedy = f"open {report} in a browser, or copy it to where there is one"
    program = shutil.which("xdg-open", path=environment.path())
    if program is None or not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise UsageError("--open", "there is no desktop here", remedy=remedy)
    desktop = {name: os.environ[name] for name in OF_A_DESKTOP if name in os.environ}
    try:
        done = subprocess.run(
            [program, str(report)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=SECONDS,
            check=False,
            start_new_session=True,
            env=environment.ours(PATH=environment.path(), **desktop),
        )
    except subprocess.TimeoutExpired:
        return  # some browsers do not return before they are closed
    if done.returncode:
        raise UsageError("--open", f"xdg-open failed ({done.returncode})", remedy=remedy)
