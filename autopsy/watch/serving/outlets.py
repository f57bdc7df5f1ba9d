"""Opens what was asked for of HTTP and textfile, and feeds each with every round."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from autopsy.errors import NotPermitted, UsageError
from autopsy.watch import ring, state
from autopsy.watch.model import Round
from autopsy.watch.serving import http, textfile
from autopsy.watch.serving.address import parse
from autopsy.watch.serving.outlet import NotOpened, Outlet
from autopsy.watch.state import WatchSnapshot, encode, own_figures

CLIENT = "prometheus_client"
INSTALL = "install it beside autopsy (its extra `watch` names the versions), or leave {option} away"


class Outlets:
    """All that a round leaves by: what was asked for, and the state file where there is a run folder for it."""

    def __init__(self, outlets: tuple[Outlet, ...], run_folder: int | None = None) -> None:
        self._outlets = outlets
        self._run_folder = run_folder

    def publish(self, last: Round) -> None:
        """Put a finished round out, waiting for nobody."""
        data = encode(WatchSnapshot(round=last, own=own_figures()))
        for outlet in self._outlets:
            outlet.put(data)
        if self._run_folder is not None:
            state.write(self._run_folder, data)


@contextmanager
def opened(*, listen: str = "", textfile_folder: Path | None = None, anywhere: bool = False) -> Iterator[Outlets]:
    """Hold open what serves metrics; an empty address and no folder are none.

    Raises:
        UsageError: the address is none, or other hosts would reach it, or prometheus-client is not installed.
        NotPermitted: the address is taken or not ours to take, the folder is not ours.
    """
    wanted: list[tuple[Outlet, str]] = []
    if listen:
        address = parse(listen, anywhere=anywhere)
        _need_client("--listen")
        wanted.append((Outlet("http", partial(http.serve, address)), listen))
    if textfile_folder is not None:
        _need_client("--textfile")
        folder = textfile_folder.absolute()
        wanted.append((Outlet("textfile", partial(textfile.keep, folder)), str(folder)))
    outlets = tuple(outlet for outlet, _ in wanted)
    run_folder: int | None = None
    with suppress(OSError):  # whoever keeps the rings tells of it
        run_folder = ring.open_run_folder()
    try:
        for outlet, name in wanted:
            _open(outlet, name)
        yield Outlets(outlets, run_folder)
    finally:
        for outlet in outlets:
            outlet.close()
        if run_folder is not None:
            state.remove(run_folder)
            os.close(run_folder)


def _open(outlet: Outlet, name: str) -> None:
    try:
        outlet.open()
    except NotOpened as error:
        remedy = (
            "give an address that is free: `ss -ltnp` shows who has it"
            if outlet.name == "http"
            else "give a folder that is yours, and that nobody else may write to"
        )
        raise NotPermitted(name, str(error), remedy=remedy) from error


def _need_client(option: str) -> None:
    if find_spec(CLIENT) is None:
        raise UsageError(option, "prometheus-client is not installed", remedy=INSTALL.format(option=option))
