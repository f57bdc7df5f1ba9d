"""An image is known by its file, whatever name QEMU was given for it."""

from __future__ import annotations

from autopsy.bundle import layout
from autopsy.bundle.sections import Section, render
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from support.built import cases
from support.built import evidence as e

LINK = "/dev/pve/vm-102-disk-1"


def frozen(name: str, *, fdinfo: str = "pos:\t0\nmnt_id:\t31\nino:\t12\n", images: tuple[bytes, ...] = ()) -> e.Fake:
    """Return a VM with a worker on a frozen file system, whose disk was named so on the command line."""
    case = cases.frozen_threads()
    case.info[9] = fdinfo
    for step in (layout.QUERY_BLOCK, layout.QUERY_STATUS, layout.SECOND_EXPOSURE):
        case.exchanges[step] = []
    case.monitor()
    case.disks(e.disk("d0", "vd0", file="/other.raw"), e.disk("d1", "vd1", file=name))
    bundle = case.bundle()
    path = layout.evidence(layout.PROC_FDS, layout.IMAGES)
    stored = render([Section(f"image/{number}", data) for number, data in enumerate(images)])
    return e.Fake(bundle.manifest, {**bundle.files, path: stored})


def named(bundle: e.Fake) -> tuple[str, ...]:
    found = diagnose(gather_facts(bundle))
    assert found.signature == "host-fs-frozen"
    return found.objects


def test_a_disk_named_by_a_link_is_the_one_whose_file_is_stuck() -> None:
    assert "vd1 (d1)" in named(frozen(LINK, images=(b"7:0 12 " + LINK.encode(),)))


def test_a_link_that_leads_to_another_inode_or_device_is_not() -> None:
    for identity in (b"7:0 13 ", b"8:0 12 "):
        assert "vd1 (d1)" not in named(frozen(LINK, images=(identity + LINK.encode(),)))


def test_a_kernel_that_shows_no_inode_leaves_the_disk_unnamed() -> None:
    assert "vd1 (d1)" not in named(frozen(LINK, fdinfo="pos:\t0\n", images=(b"7:0 12 " + LINK.encode(),)))


def test_a_line_that_is_damaged_names_nothing() -> None:
    for broken in (b"", b"7:0 x " + LINK.encode(), b"\xff\xff", b"7:0 12"):
        assert "vd1 (d1)" not in named(frozen(LINK, images=(broken,)))


def test_a_descriptor_that_was_passed_in_a_set_is_the_set_s_file() -> None:
    bundle = frozen("/dev/fdset/3")
    path = layout.evidence(layout.WITNESS, layout.CMDLINE)
    line = b"qemu-system-x86_64\0-add-fd\0fd=9,set=3\0"
    assert "vd1 (d1)" in named(e.Fake(bundle.manifest, {**bundle.files, path: line}))
    other = b"qemu-system-x86_64\0-add-fd\0fd=9,set=4\0"
    assert "vd1 (d1)" not in named(e.Fake(bundle.manifest, {**bundle.files, path: other}))
