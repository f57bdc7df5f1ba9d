"""A headless Chromium with its network off, for tests of the report."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support import lab

AXE = Path(__file__).resolve().parents[2] / "build/node_modules/axe-core/axe.min.js"


@contextmanager
def chromium() -> Iterator[Any]:
    """Yield a running browser; the test is skipped where there is none."""
    try:
        from playwright.sync_api import sync_playwright  # noqa: PLC0415 - it may be missing
    except ImportError:
        lab.missing("playwright is not installed")
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if binary is None:
        lab.missing("chromium is not installed")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def axe() -> str:
    """Return axe-core's source, which `make test` takes from npm."""
    if not AXE.is_file():
        lab.missing("axe-core is not in build/node_modules")
    return AXE.read_text("utf-8")
