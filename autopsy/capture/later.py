"""Names a collector whose module is loaded when it is first called: most of our code is not needed to begin."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import cast

from autopsy.capture.step import Outcome, Scene
from autopsy.dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Later:
    """The collector `name` of `module`. To load all takes a tenth of a second, while the VM waits for us."""

    module: str
    name: str

    def __call__(self, scene: Scene) -> Outcome:
        """Collect."""
        return self.load()(scene)

    def load(self) -> Callable[[Scene], Outcome]:
        """Return the collector itself."""
        return cast("Callable[[Scene], Outcome]", getattr(import_module(self.module), self.name))
