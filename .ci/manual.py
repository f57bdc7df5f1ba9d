"""Prints autopsy(1): see tools/manual.py."""

from __future__ import annotations

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).resolve().parent.parent / "tools/manual.py"), run_name="__main__")
