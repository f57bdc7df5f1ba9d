"""Whoever takes no more than so much of something leaves a word of it in the evidence."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import msgspec
import pytest

from autopsy.bundle import layout
from autopsy.bundle.records import LeftOut
from autopsy.bundle.sections import REST, Section
from autopsy.capture.host import block_devices, cgroups
from autopsy.capture.proc import aio, images, layers, sockets
from autopsy.capture.qmp import commands, unstable
from autopsy.capture.qmp import step as qmp
from autopsy.capture.reading.procfs import held
from autopsy.capture.reading.reader import ReadFailures, Truncated, Unreadable
from autopsy.capture.step import Scene
from autopsy.examine.core.inputs import Frozen
from autopsy.examine.core.reader import PAGE, Core
from autopsy.examine.core.symbols import Symbols
from autopsy.examine.coroutines import find
from autopsy.examine.threads import aio_rings
from autopsy.examine.view import View
from autopsy.linux import layers as linux_layers
from support import looking, snapshot

MOUNTINFO = b"30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"


def left_out(scene: Scene) -> list[LeftOut]:
    return looking.decoded(scene, layout.LEFT_OUT, list[LeftOut])


def test_more_control_groups_than_are_read_are_told() -> None:
    lines = [b"0::/g%d\n" % number for number in range(cgroups.MOST_GROUPS + 6)]
    *_, last = cgroups.reads(lines, MOUNTINFO)
    assert last.name == f"cgroup{REST}"
    with pytest.raises(Unreadable, match="6 more groups"):
        last.take()
    assert not any(read.name.endswith(REST) for read in cgroups.reads(lines[: cgroups.MOST_GROUPS], MOUNTINFO))


def test_a_group_that_lies_deep_is_read_up_to_the_top() -> None:
    deep = b"0::/" + b"/".join(b"%d" % level for level in range(30)) + b"\n"
    assert "/sys/fs/cgroup/0/cgroup.freeze" in [read.name for read in cgroups.reads([deep], MOUNTINFO)]


def test_more_block_devices_than_are_looked_at_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_devices, "MOST_DEVICES", 0)
    monkeypatch.setattr(block_devices, "_direct", lambda *_: iter([("7:0", "fd 3"), ("7:1", "fd 4")]))
    told = block_devices._walk(None, {})  # type: ignore[arg-type]  # nothing is read of the process
    assert told == Truncated(b"[]", "2 more were not looked at")


def test_more_images_than_are_looked_for_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MOST_IMAGES", 2)
    with looking.scene(os.getpid(), tmp_path, layout.PROC_FDS) as scene, held(scene.target) as process:
        witness = tmp_path / "evidence" / layout.WITNESS
        witness.mkdir()
        (witness / layout.CMDLINE).write_bytes(b"\0".join(b"file=/a%d" % number for number in range(5)))
        images.collect_images(scene, process, {}, ReadFailures())
        assert looking.found(scene, layout.IMAGES)[f"image{REST}"].error == "3 more were not looked for"


def test_more_aio_rings_than_are_read_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aio, "MOST_RINGS", 1)
    maps = b"".join(b"%x000-%x000 rw-s 00000000 00:0d 1 /[aio] (deleted)\n" % (at, at + 1) for at in (0x10, 0x20, 0x30))
    with looking.scene(os.getpid(), tmp_path, layout.PROC_AIO) as scene, held(scene.target) as process:
        aio.collect_aio(scene, process, {}, maps, ReadFailures())
        assert [each.why for each in left_out(scene)] == ["2 were not read"]


def test_more_threads_of_a_peer_than_are_looked_at_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "MOST_THREADS", 0)
    rest = next(read for read in sockets._peers([os.getpid()]) if read.name.endswith(REST))
    assert rest.name == f"peer/{os.getpid()}/task{REST}"
    with pytest.raises(Unreadable, match=r"\d more threads"):
        rest.take()


def test_more_peers_than_are_looked_at_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "MOST_PEERS", 0)
    monkeypatch.setattr(sockets, "_ends", lambda *_: b'[{"fd":1,"inode":2,"family":"unix","peer_pids":[1,2,3]}]')
    with looking.scene(os.getpid(), tmp_path, layout.PROC_FDS) as scene, held(scene.target) as process:
        sockets.collect_sockets(scene, process, {"fd/1": Section("fd/1", b"socket:[2]")}, ReadFailures())
        assert looking.found(scene, layout.SOCKETS)[f"peer{REST}"].error == "3 more were not looked at"


def test_more_layers_than_are_looked_at_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "MOST_LAYERS", 0)
    assert isinstance(layers._walk(("7:0",), ()), Truncated)
    monkeypatch.undo()
    monkeypatch.setattr(linux_layers, "MOST_DEVICES", 0)
    assert isinstance(layers._walk(("7:0",), ()), Truncated)


def test_more_throttle_groups_than_are_asked_for_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [{"name": f"g{number}", "type": "child<throttle-group>"} for number in range(commands.MOST_GROUPS + 3)]
    assert len(commands.throttle_groups(groups)) == commands.MOST_GROUPS + 3
    monkeypatch.setattr(qmp.session, "answer_to", lambda *_: groups)
    monkeypatch.setattr(qmp, "silence", lambda _scene: None)
    monkeypatch.setattr(qmp, "_guarded", lambda *_: None)
    with looking.scene(os.getpid(), tmp_path, layout.THROTTLE_GROUPS) as scene:
        qmp.throttle_groups(scene)
        assert [each.why for each in left_out(scene)] == ["3 were not asked"]


def test_queues_are_numbered_as_the_device_has_them_however_few_are_asked_for() -> None:
    assert (
        len(unstable.queues({"vhost-started": False, "num-vqs": unstable.MOST_QUEUES + 4})) == unstable.MOST_QUEUES + 4
    )


def opened(tmp_path: Path, *memory: tuple[int, bytes]) -> View:
    core = Core.of(snapshot.core_of(b"", *memory))
    frozen = Frozen(core=tmp_path, read=lambda _path: b"{}", write=lambda _file, _data: None, scratch=tmp_path)
    return View(frozen=frozen, core=core, second=None, symbols=Symbols(core, frozen), threads=(), ends_at=0.0)


def test_more_rings_in_a_core_than_are_read_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = aio_rings.RING.pack(7, 128, 3, 5, aio_rings.MAGIC, 1, 0, 32).ljust(PAGE, b"\0")
    view = opened(tmp_path, (0x100000, ring), (0x200000, ring))
    monkeypatch.setattr(aio_rings, "MOST_RINGS", 1)
    assert len(list(aio_rings.find_aio_rings(view.core, b""))) == 2
    monkeypatch.setattr(aio_rings, "freeze_record", lambda _read: type("Record", (), {"frozen_at_ns": 1}))
    assert len(aio_rings.examine_aio_rings(view).aio) == 1
    assert [each.what for each in view.left_out] == ["there are more AIO rings than are told"]


@pytest.mark.parametrize("bound", ["MOST_CANDIDATES", "MOST_SCANNED"])
def test_a_search_for_coroutines_that_ended_early_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    view = opened(tmp_path, (0x100000, find.WORD.pack(find.STACK_SIZE) * 512))
    monkeypatch.setattr(find, bound, 1)
    told: list[LeftOut] = []
    find.find_coroutines(view.core, view.symbols, told)
    assert [each.requests for each in told] == [True]


def test_nothing_is_left_behind_where_no_limit_bit(tmp_path: Path) -> None:
    with looking.scene(os.getpid(), tmp_path, layout.PROC_AIO) as scene:
        scene.leave_out()
        assert not (scene.folder / layout.LEFT_OUT).exists()
    assert partial(msgspec.json.decode, type=list[LeftOut])(b"[]") == []
