"""A wait is followed from an image's file system through a loop device to the program that serves what lies below."""

from __future__ import annotations

import pytest

from autopsy.bundle.sections import Section
from autopsy.diagnose.verdict import diagnose
from autopsy.diagnose.waits import graph
from autopsy.facts import subjects
from autopsy.facts.gather import gather_facts
from support.built import evidence as e
from support.built import families as cases

LAYER = b'{"above":"7:0","loop":"loop0","file":"/srv/f/d","mount":"40 1 0:40 / /srv/f rw - fuse.sshfs s rw"}'


def stacked(*, state: str = "T (stopped)", layer: bytes = LAYER) -> e.Fake:
    case = cases.in_kernel("io_schedule", "__iomap_dio_rw", "ext4_file_write_iter")
    case.mountinfo += "31 30 7:0 / /mnt/vm rw - ext4 /dev/loop0 rw\n"
    case.peer_sections += [
        Section("layer/0", layer),
        Section("fuse/40/mount", b"40 1 0:40 / /srv/f rw - fuse.sshfs s rw"),
        Section("fuse/40/daemon", b"900\n"),
        Section("peer/900/comm", b"sshfs\n"),
        Section("peer/900/status", f"Name:\tsshfs\nState:\t{state}\n".encode()),
    ]
    return case.bundle()


def test_the_end_is_the_daemon_and_the_local_disk_only_waits_for_it() -> None:
    facts = gather_facts(stacked())
    assert list(graph.build(facts).ends.sinks) == [subjects.Peer(900)]
    found = diagnose(facts)
    assert (found.where, found.signature) == ("peer", "storage-below-silent")
    assert "sshfs 900" in found.objects
    assert ("host-block-wait", "storage-below-silent") in {
        (each.signature, each.because_of) for each in found.secondary
    }


def test_a_daemon_that_runs_and_is_asked_nothing_is_not_blamed() -> None:
    assert diagnose(gather_facts(stacked(state="S (sleeping)"))).signature == "host-block-wait"


@pytest.mark.parametrize("layer", [b"", b"{}", b"[1]", b"\xff", LAYER.replace(b"40 1 0:40", b"nonsense")])
def test_a_layer_that_cannot_be_read_is_none(layer: bytes) -> None:
    assert diagnose(gather_facts(stacked(layer=layer))).signature == "host-block-wait"


def test_layers_that_lie_in_each_other_come_to_an_end() -> None:
    ring = LAYER.replace(b"40 1 0:40 / /srv/f rw - fuse.sshfs s rw", b"31 30 7:0 / /mnt/vm rw - ext4 /dev/loop0 rw")
    assert diagnose(gather_facts(stacked(layer=ring))).signature == "host-block-wait"
