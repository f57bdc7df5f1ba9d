"""The host's limits on a VM's disk I/O, and when they are what its requests wait for."""

from __future__ import annotations

import pytest

from autopsy.bundle import records
from autopsy.bundle.sections import Section
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.cite import Known, Unknown
from autopsy.facts.gather import gather_facts
from support.built import evidence as e
from support.built import families as cases

GROUP = "/sys/fs/cgroup/machine.slice/vm.scope"
STACK = ("io_schedule", "blk_mq_get_tag", "submit_bio")
ON_ROOT = "30 1 254:1 / / rw - ext4 /dev/vda1 rw\n"


def limited(*sections: Section, device: str = "254:1") -> Diagnosis:
    """Diagnose a VM whose workers sleep in the block layer, with these files of its control groups."""
    case = cases.in_kernel(*STACK)
    case.mountinfo = ON_ROOT.replace("254:1", device)
    case.host += sections
    return diagnose(gather_facts(case.bundle()))


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (Section(f"{GROUP}/io.max", b"8:0 rbps=max wbps=5 riops=max wiops=max\n254:1 rbps=9 wbps=1000\n"), "9 bytes"),
        (Section("/sys/fs/cgroup/blkio/vm/blkio.throttle.write_bps_device", b"254:1 1000\n"), "1000 bytes"),
        (Section("/sys/fs/cgroup/blkio/vm/blkio.throttle.read_iops_device", b"254:1 1\n"), "1 requests"),
    ],
)
def test_a_limit_that_lets_nothing_go_is_the_cause(section: Section, words: str) -> None:
    found = limited(section)
    assert (found.where, found.signature, found.confidence) == ("host", "cgroup-io-limited", "likely")
    assert words in found.headline
    assert "host-block-wait" in {each.signature for each in found.secondary}


def test_a_limit_of_a_partitions_disk_lies_below_the_partition() -> None:
    found = limited(Section(f"{GROUP}/io.max", b"254:0 wbps=1000\n"))
    assert (found.signature, found.confidence) == ("cgroup-io-limited", "likely")


@pytest.mark.parametrize(("device", "limit"), [("254:1", b"254:16"), ("259:1", b"259:0")], ids=["virtio", "NVMe"])
def test_a_limit_of_what_may_be_another_disk_is_only_possible(device: str, limit: bytes) -> None:
    found = limited(Section(f"{GROUP}/io.max", limit + b" wbps=1000\n"), device=device)
    assert (found.signature, found.confidence) == ("host-block-wait", "proven")
    assert "cgroup-io-limited" in {each.signature for each in found.secondary}


@pytest.mark.parametrize(
    "data",
    [b"", b"254:1 rbps=max wbps=max riops=max wiops=max\n", b"254:1 wbps=104857600\n", b"8:0 wbps=1\n", b"x y=1\n\xff"],
    ids=["no limit", "all max", "wide", "another device", "nonsense"],
)
def test_what_does_not_limit_is_ruled_out(data: bytes) -> None:
    found = limited(Section(f"{GROUP}/io.max", data))
    assert found.signature == "host-block-wait"
    assert "cgroup-io-limited" in {each.signature for each in found.ruled_out}


def test_every_limit_of_every_group_is_read() -> None:
    case = e.Case()
    case.host += [
        Section(f"{GROUP}/io.max", b"8:0 rbps=1 wbps=2 riops=3 wiops=4\n"),
        Section("/sys/fs/cgroup/machine.slice/io.max", b"8:16 rbps=max wbps=5\n"),
    ]
    limits = gather_facts(case.bundle()).host.io_limits
    assert isinstance(limits, Known)
    assert [(each.kind, each.unit, each.value) for each in limits.value] == [
        ("read", "bytes", 1),
        ("write", "bytes", 2),
        ("read", "requests", 3),
        ("write", "requests", 4),
        ("write", "bytes", 5),
    ]
    assert isinstance(gather_facts(e.Case().bundle()).host.io_limits, Unknown)


@pytest.mark.parametrize(
    ("limit", "signature"), [(b"7:0 wbps=1\n", "cgroup-io-limited"), (b"8:0 wbps=1\n", "aio-in-kernel")]
)
def test_a_limit_of_the_very_device_that_a_disk_is_holds_what_the_kernel_does_not_end(
    limit: bytes, signature: str
) -> None:
    case = e.Case()
    case.idle_threads()
    case.parked(e.NATIVE)
    case.monitor()
    case.disks(e.disk("d0", "vd0", driver="host_device", file="/dev/loop0"))
    ring = records.AioRing(address=0x7F0000000000, context_id=1, entries=128, head=5, tail=5, valid=True)
    case.rings = [records.Rings(aio=(ring,), uring=(), taken_ns=moment * e.SECOND) for moment in (10, 15)]
    case.descriptors[9] = "/dev/loop0"
    case.mountinfo = "30 1 254:1 / / rw - ext4 /dev/vda1 rw\n31 30 0:6 / /dev rw - devtmpfs devtmpfs rw\n"
    case.host = [
        Section("block-devices", b"vda1 254:1 below / (ext4, fd 1)\nloop0 7:0 below fd 9\n"),
        Section("/sys/class/block/loop0/inflight", b"0 0\n"),
        Section(f"{GROUP}/io.max", limit),
    ]
    found = diagnose(gather_facts(case.bundle()))
    assert found.signature == signature
    assert [each.signature for each in found.causes] == [signature]
    assert found.kill == ("needless" if signature == "cgroup-io-limited" else "futile")
