"""A stored bundle examined again on a machine that knows less, or more, than the one that it was captured on."""

from __future__ import annotations

import http.server
import importlib.util
import json
import os
import pty
import select
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from autopsy.bundle import layout
from autopsy.bundle.heap.records import Heap
from autopsy.bundle.reader import open_bundle
from autopsy.bundle.records import Coroutine, LockGraph, MainLoop, Module, ThreadStack
from autopsy.examine.core.elf import Elf
from support import lab
from support.copies import hidden

pytestmark = pytest.mark.live

DEBUG = "10.0.2-debug"
REQUESTS = 8
INTERCEPT = "throttle_group_co_io_limits_intercept"
SECONDS = 120


@pytest.fixture(autouse=True)
def _with_drgn() -> None:
    if importlib.util.find_spec("drgn") is None:
        lab.missing("drgn is not installed")


@dataclass(frozen=True, slots=True)
class Stored:
    """One wedged VM, captured with its binary and without it; VM and binary are gone. `debug` is what strip took."""

    with_binary: Path
    without_binary: Path
    debug: Path
    binary: Path
    build_id: str


def autopsy(*words: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "autopsy", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def stored() -> Iterator[Stored]:
    for tool in ("objcopy", "strip"):
        if shutil.which(tool) is None:
            lab.missing(f"{tool} is not installed: apt install binutils")
    build = lab.build(DEBUG)
    with lab.folder() as place:
        binary, debug, away = place / "qemu-system-x86_64", place / "qemu.debug", place / "away"
        subprocess.run(["objcopy", "--only-keep-debug", build.binary, debug], check=True)
        subprocess.run(["strip", "-o", binary, build.binary], check=True)
        shutil.copy(binary, away)
        arguments = (
            *("-object", "throttle-group,id=tg0,x-bps-total=1"),
            *("-blockdev", f"driver=file,filename={lab.disk(place / 'd.raw')},node-name=file0"),
            *("-blockdev", "driver=throttle,node-name=slow0,throttle-group=tg0,file=file0"),
            *("-device", "virtio-blk-pci,id=vd0,drive=slow0"),
        )
        with lab.qemu(replace(build, binary=binary), *arguments) as machine:
            for number in range(REQUESTS):
                machine.qemu_io(lab.of_device("vd0"), f"aio_write {number * 4}k 4k")
            binary.unlink()
            bundles = [
                Path(json.loads(autopsy("capture", f"pid:{machine.pid}", *words))["bundle"])
                for words in (
                    ("--fast", "--json", "--out", place / "with"),
                    ("--fast", "--json", "--out", place / "without", "--no-binary"),
                )
            ]
        yield Stored(*bundles, debug, away, Elf(away).build_id)


@dataclass(frozen=True, slots=True)
class Known:
    """What a bundle's examination says."""

    threads: tuple[ThreadStack, ...]
    coroutines: tuple[Coroutine, ...]
    modules: tuple[Module, ...]
    loop: MainLoop
    locks: LockGraph
    heap: Heap
    backtrace: list[str]
    listing: list[str]

    @property
    def parked(self) -> list[Coroutine]:
        """Return the parked coroutines, the monitor's own among them."""
        return [each for each in self.coroutines if each.state == "parked"]

    @property
    def requests(self) -> list[Coroutine]:
        """Return those that can be told to be throttled: this build exports no names."""
        return [each for each in self.parked if INTERCEPT in [frame.function for frame in each.frames]]

    @property
    def main(self) -> Module:
        return next(each for each in self.modules if each.path.endswith("/qemu-system-x86_64"))


def known(bundle: Path) -> Known:
    opened = open_bundle(bundle)

    def text(file: str) -> bytes:
        return opened.read(layout.evidence(layout.GDB_THREADS, file)) or b""

    def record(file: str, kind: Any) -> Any:
        return msgspec.json.decode(text(file), type=kind)

    return Known(
        threads=record(layout.THREADS, tuple[ThreadStack, ...]),
        coroutines=record(layout.COROUTINES, tuple[Coroutine, ...]),
        modules=record(layout.MODULES, tuple[Module, ...]),
        loop=record(layout.MAIN_LOOP, MainLoop),
        locks=record(layout.LOCKS, LockGraph),
        heap=record(layout.HEAP, Heap),
        backtrace=text(layout.BACKTRACE).decode().splitlines(),
        listing=text(layout.COROUTINES_TEXT).decode().splitlines(),
    )


def examined(bundle: Path, *words: str | Path) -> Known:
    """Examine a bundle again and return what the new bundle says."""
    before = set(bundle.parent.iterdir())
    autopsy("examine", bundle, *words)
    (made,) = set(bundle.parent.iterdir()) - before
    return known(made)


def cites_hold(told: Known) -> None:
    """Check that each record begins at the line that it says."""
    for thread in told.threads:
        assert f"LWP {thread.tid}" in told.backtrace[thread.line - 1]
    for coroutine in told.parked:
        assert "parked" in told.listing[coroutine.line - 1]


def test_a_deleted_binary_comes_with_the_bundle_and_names_the_same(stored: Stored) -> None:
    then, now = known(stored.with_binary), examined(stored.with_binary)
    assert then.main.source == "process"
    assert len(then.parked) == REQUESTS + 1
    assert min(len(each.frames) for each in then.parked) > 2
    assert now.threads == then.threads
    assert [each.frames for each in now.coroutines] == [each.frames for each in then.coroutines]
    assert now.loop == then.loop
    assert now.locks == then.locks
    cites_hold(now)


def test_an_examination_without_the_binary_loses_nothing_of_what_the_capture_knew(stored: Stored) -> None:
    then, now = known(stored.without_binary), examined(stored.without_binary)
    assert (now.main.symbols, now.main.source) == (then.main.symbols, "process")
    assert now.threads == then.threads
    assert [(each.state, each.frames) for each in now.coroutines] == [
        (each.state, each.frames) for each in then.coroutines
    ]
    assert {each.since_first for each in now.parked} == {"stuck"}
    assert now.loop == then.loop
    assert now.locks == then.locks
    assert now.heap.first is None
    cites_hold(now)


def test_a_debug_file_brings_the_lines_and_the_heap(stored: Stored) -> None:
    pinned(examined(stored.with_binary, "--debug-file", stored.debug))


def pinned(now: Known) -> None:
    """Check that the wedge is pinned to its line, and its requests are known by what they are."""
    assert now.main.symbols == "dwarf"
    assert len(now.requests) == REQUESTS
    for each in now.requests:
        throttle = next(frame for frame in each.frames if frame.function == INTERCEPT)
        assert throttle.file.endswith("block/throttle-groups.c")
        assert throttle.line > 0
        assert each.since_first == "stuck"
    main = next(each for each in now.threads if each.tid == now.loop.tid)
    assert any(frame.file.endswith("util/main-loop.c") for frame in main.frames)
    assert now.loop.state == "idle"
    assert now.heap.first is not None
    assert now.heap.second is not None
    (slow,) = [each for each in now.heap.first.nodes if each.node_name == "slow0"]
    assert {each.coroutine for each in slow.requests} == {each.address for each in now.requests}
    assert {each.since_first for each in slow.requests} == {"stuck"}
    cites_hold(now)


def test_a_debug_file_brings_them_even_without_the_binary_and_they_stay(stored: Stored, tmp_path: Path) -> None:
    autopsy("examine", stored.without_binary, "--debug-file", stored.debug, "--out", tmp_path / "new")
    (better,) = (tmp_path / "new").iterdir()
    pinned(known(better))
    pinned(examined(better))


def test_a_binary_that_only_the_vm_could_see_comes_with_the_bundle(
    stock: lab.Build, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, _ = hidden(stock, short, monkeypatch)
    with lab.qemu(inside) as machine:
        answer = json.loads(autopsy("capture", f"pid:{machine.pid}", "--fast", "--json", "--out", short / "out"))
    (step,) = [each for each in answer["steps"] if each["name"] == layout.GDB_THREADS]
    assert step["why"].endswith(f"the binary, which is not to be found by its path, is kept as {layout.BINARY}")
    assert layout.BINARY in open_bundle(Path(answer["bundle"])).names()


class Shelf(http.server.BaseHTTPRequestHandler):
    """A debuginfod server of one build."""

    files: dict[str, Path]

    def do_GET(self) -> None:
        file = self.files.get(self.path)
        self.send_response(200 if file else 404)
        self.send_header("Content-Length", str(file.stat().st_size if file else 0))
        self.end_headers()
        if file:
            with suppress(BrokenPipeError, ConnectionResetError), file.open("rb") as stream:
                shutil.copyfileobj(stream, self.wfile)

    do_HEAD = do_GET  # noqa: N815 - what http.server calls

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def debuginfod(**files: Path) -> Iterator[str]:
    """Serve files by their path, `buildid/…`, on a port of loopback's."""
    handler = type("Handler", (Shelf,), {"files": {f"/{name}": path for name, path in files.items()}})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("kinds", [("debuginfo",), ("debuginfo", "executable")])
def test_a_debuginfod_server_brings_the_same(
    stored: Stored, kinds: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("debuginfod-find") is None:
        lab.missing("debuginfod-find is not installed: apt install debuginfod")
    files = {"debuginfo": stored.debug, "executable": stored.binary}
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with debuginfod(**{f"buildid/{stored.build_id}/{kind}": files[kind] for kind in kinds}) as url:
        now = examined(stored.without_binary, "--debuginfod", url)
    assert now.main.source == "debuginfod"
    pinned(now)


def test_an_operator_walks_through_the_coroutines_in_gdb(stored: Stored) -> None:
    ours, theirs = pty.openpty()
    gdb = subprocess.Popen(
        [sys.executable, "-m", "autopsy", "gdb", str(stored.with_binary), "--debug-file", str(stored.debug)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env={**os.environ, "TERM": "dumb"},
    )
    os.close(theirs)
    try:
        until_prompt(ours)
        listing = ask(ours, "info coroutines")
        assert f"{REQUESTS + 1} parked coroutines" in listing
        stack = ask(ours, "coroutine 1")
        assert "#0" in stack
        assert "qemu_coroutine_switch" in stack
        printed = ask(ours, "thread apply all bt")
        assert printed.count("throttle-groups.c:") >= REQUESTS
        assert "main_loop_wait" in printed
        os.write(ours, b"quit\n")
        assert gdb.wait(30) == 0
    finally:
        with suppress(ProcessLookupError):
            os.killpg(gdb.pid, 9)
        gdb.wait()
        os.close(ours)


def ask(terminal: int, command: str) -> str:
    os.write(terminal, f"{command}\n".encode())
    return until_prompt(terminal)


def until_prompt(terminal: int) -> str:
    """Return what a gdb prints before it asks again."""
    heard = b""
    deadline = time.monotonic() + 60
    while not heard.endswith(b"(gdb) "):
        ready, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            pytest.fail(f"gdb did not ask again: {heard[-500:]!r}")
        heard += os.read(terminal, 65536)
    return heard.decode("utf-8", "replace")
