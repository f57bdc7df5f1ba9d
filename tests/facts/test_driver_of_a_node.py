"""A request that is no disk's stands in the one driver among all nodes that can make it wait."""

from __future__ import annotations

from autopsy.bundle import layout, records
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.cite import Known
from autopsy.facts.gather import gather_facts
from support.built import cases
from support.built import evidence as e

NAMELESS = (*e.YIELD, "", "", "bdrv_co_pwritev_part", "", "coroutine_trampoline")


def drained(*blockdevs: str) -> e.Case:
    case = e.Case()
    case.idle_threads()
    case.parked(NAMELESS)
    case.main_loop = records.MainLoop(tid=e.PID, state="nested poll", under="blk_unref")
    case.command_line = tuple(word for each in blockdevs for word in ("-blockdev", each))
    case.command_line += ("-drive", "file=/d.raw,if=none,id=d0")
    return case


def test_a_drain_over_a_node_that_no_disk_uses_is_behind_that_node_s_driver() -> None:
    found = diagnose(gather_facts(drained("driver=blkdebug,node-name=debug0,image=file0").bundle()))
    assert (found.where, found.signature) == ("block", "blkdebug-suspended")
    assert "main-loop-nested-poll" in {each.signature for each in found.secondary}


def test_where_two_drivers_could_hold_it_none_is_named() -> None:
    both = ("driver=blkdebug,node-name=debug0,image=file0", "driver=nbd,node-name=nbd0,server.type=unix,server.path=/n")
    assert diagnose(gather_facts(drained(*both).bundle())).signature not in {"blkdebug-suspended", "nbd-silent"}


def test_a_disk_waits_for_its_data_file_and_a_server_s_image_is_no_node() -> None:
    case = drained(
        "driver=file,node-name=file0,filename=/i.qcow2",
        "driver=nbd,node-name=data0,server.type=unix,server.path=/run/nbd.sock",
        "driver=qcow2,node-name=top0,file=file0,data-file=data0",
        "driver=rbd,node-name=rbd0,pool=p,image=data0",
    )
    case.command_line += ("-device", "virtio-blk-pci,id=vd0,drive=top0", "-device", "virtio-blk-pci,id=vd1,drive=rbd0")
    disks = gather_facts(case.bundle()).disks
    assert isinstance(disks, Known)
    nodes = {disk.name: [node.name for node in disk.nodes] for disk in disks.value}
    assert nodes["vd0"] == ["top0", "file0", "data0"]
    assert nodes["vd1"] == ["rbd0"]


def test_extents_are_known_by_their_files_where_qemu_does_not_tell_its_nodes_children() -> None:
    case = drained()
    case.monitor()
    extents = [{"filename": f"/i-f00{number}.vmdk", "format": "FLAT"} for number in (1, 2)]
    image = {"filename": "/i.vmdk", "format-specific": {"type": "vmdk", "data": {"extents": extents}}}
    nodes = [{"node-name": "top0", "drv": "vmdk", "file": "/i.vmdk", "image": image}]
    nodes += [{"node-name": f"end{n}", "drv": "file", "file": f"/i-f00{n}.vmdk"} for n in (1, 2, 3)]
    case.asked("query-named-block-nodes", nodes, step=layout.QUERY_BLOCK)
    told = {node.name: node.children for node in gather_facts(case.bundle()).nodes}
    assert told["top0"] == ("end1", "end2")


def variables_on_a_frozen_file_system(machine: str) -> Diagnosis:
    """Return what is said where the thread that waits works on a firmware's variables, and QEMU was not asked."""
    case = cases.frozen_threads()
    case.exchanges.clear()
    case.dead_monitor()
    case.descriptors[9] = "/mnt/vm/vars.fd"
    case.command_line = (
        "-machine",
        f"q35{machine}",
        "-blockdev",
        "driver=file,node-name=vars0,filename=/mnt/vm/vars.fd",
    )
    case.command_line += ("-drive", "file=/d.raw,format=raw,if=none,id=d0", "-device", "virtio-blk-pci,id=vd0,drive=d0")
    return diagnose(gather_facts(case.bundle()))


def test_a_firmware_s_variables_are_a_disk() -> None:
    found = variables_on_a_frozen_file_system(",pflash1=vars0")
    assert (found.signature, "vars0" in found.objects) == ("host-fs-frozen", True)
    assert not {"vd0", "d0", "vd0 (d0)"} & set(found.objects)


def test_a_file_of_a_node_that_no_disk_has_is_not_called_the_only_disk_s() -> None:
    found = variables_on_a_frozen_file_system("")
    assert found.signature == "host-fs-frozen"
    assert not {"vars0", "vd0", "d0", "vd0 (d0)"} & set(found.objects)
