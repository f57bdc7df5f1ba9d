"""A private folder for a step's while, which is in no copy and in no bundle."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autopsy.bundle import layout
from autopsy.capture.step import Scene


@contextmanager
def scratch(scene: Scene) -> Iterator[Path]:
    """Yield a new folder below the step's staging folder; what cannot be removed of it costs nobody the step."""
    with tempfile.TemporaryDirectory(
        prefix=f"{layout.SCRATCH}-", dir=scene.staging, ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder)
