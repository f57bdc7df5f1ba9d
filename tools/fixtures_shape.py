"""What a stored case of fixtures/ is made from."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from support import lab

SetUp = Callable[[lab.Build], AbstractContextManager[lab.Machine]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One stored case. `not_these` look alike and must be ruled out; `why` says why the answer is this one."""

    what: str
    build: str
    set_up: SetUp
    how: str
    where: str
    signature: str
    why: str = ""
    not_these: tuple[str, ...] = ()
    gap: float = 2.0
    unpacked: bool = False

    @property
    def name(self) -> str:
        return f"{self.what}-{self.build}"


def on(builds: tuple[str, ...], what: str, set_up: SetUp, **more: object) -> tuple[Shape, ...]:
    """Return the same shape on several QEMUs; its `how` is the docstring of what sets it up."""
    how = " ".join((set_up.__doc__ or "").split())
    return tuple(Shape(what=what, build=build, set_up=set_up, how=how, **more) for build in builds)  # type: ignore[arg-type]  # the keywords are Shape's
