"""What a sleeping thread works on is named for what it is: a block device, an overlay's upper folder, guest RAM."""

from __future__ import annotations

import pytest

from autopsy.bundle.sections import Section
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from support.built import cases, families
from support.built import evidence as e

IN_A_FAULT = ("percpu_rwsem_wait", "ext4_page_mkwrite", "do_page_mkwrite", "handle_mm_fault", "exc_page_fault")
DEVTMPFS = "40 30 0:5 / /dev rw - devtmpfs devtmpfs rw\n"


def told(case: e.Case) -> Diagnosis:
    return diagnose(gather_facts(case.bundle()))


def test_a_disk_that_is_a_block_device_is_named_and_not_what_its_node_lies_on() -> None:
    case = families.in_kernel("submit_bio_wait", "blkdev_issue_flush", "blkdev_fsync")
    case.descriptors[9] = "/dev/loop2"
    case.mountinfo += DEVTMPFS
    mount = "31 30 8:1 / /srv rw - ext4 /dev/sda1 rw"
    layer = f'{{"above":"7:2","loop":"loop2","file":"/srv/b","mount":"{mount}"}}'
    case.peer_sections.append(Section("layer/0", layer.encode()))
    found = told(case)
    assert (found.where, found.signature) == ("host", "host-block-wait")
    assert "block device loop2" in found.objects
    assert not any("/dev" in name and "devtmpfs" in name for name in found.objects)
    assert any("loop2 keeps its data in /srv/b, on /srv (ext4)" in each.text for each in found.chain)


def test_what_an_overlay_is_written_to_is_named() -> None:
    case = cases.frozen_threads()
    case.descriptors[9] = "/merged/disk.raw"
    case.mountinfo += (
        "41 30 0:50 / /merged rw - overlay overlay rw,lowerdir=/low,upperdir=/mnt/vm/up,workdir=/mnt/vm/w\n"
    )
    found = told(case)
    assert found.signature == "host-fs-frozen"
    assert "file system /mnt/vm (ext4 on /dev/loop0)" in found.objects


def faulting(*words: str) -> e.Case:
    case = families.memory_wait(*IN_A_FAULT)
    case.mountinfo += "31 30 7:0 / /mnt/vm rw - ext4 /dev/loop0 rw\n"
    case.command_line = words
    return case


@pytest.mark.parametrize(
    "words",
    [
        ("-object", "memory-backend-file,id=ram0,size=1G,share=on,mem-path=/mnt/vm/ram"),
        ("-object", '{"qom-type":"memory-backend-file","id":"ram0","size":1,"mem-path":"/mnt/vm/ram"}'),
        ("-mem-path", "/mnt/vm/ram"),
    ],
)
def test_guest_ram_on_a_frozen_file_system_is_named_by_its_file(words: tuple[str, ...]) -> None:
    found = told(faulting(*words))
    assert found.signature == "host-fs-frozen"
    assert {"/mnt/vm/ram", "file system /mnt/vm (ext4 on /dev/loop0)"} <= set(found.objects)
    assert "the guest's RAM in /mnt/vm/ram" in found.headline


def test_of_two_files_of_ram_none_is_named() -> None:
    two = ("-object", "memory-backend-file,id=a,mem-path=/mnt/vm/a", "-object", "memory-backend-file,id=b,mem-path=/b")
    found = told(faulting(*two))
    assert found.signature == "host-fs-frozen"
    assert not any("/mnt/vm" in name for name in found.objects)


def test_a_thread_in_a_write_is_not_said_to_wait_for_ram() -> None:
    case = cases.frozen_threads()
    case.command_line = ("-mem-path", "/mnt/vm/ram")
    assert "RAM" not in told(case).headline
