"""A disk whose storage answers every question with an error is not healthy, though nothing waits."""

from __future__ import annotations

import msgspec
import pytest

from autopsy.bundle import layout
from autopsy.bundle.failing_file import FailingFile
from autopsy.bundle.records import GuardLook
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from support.built import cases
from support.built import evidence as e

IMAGE = "/srv/fuse/disk.raw"
MOUNT = "30 1 254:1 / / rw - ext4 /dev/vda1 rw\n40 30 0:42 / /srv/fuse rw - fuse /dev/fuse rw\n"


def idle(error: str, *, image: str = IMAGE) -> Diagnosis:
    case = cases.healthy_idle()
    case.mountinfo = MOUNT
    case.descriptors[12] = image
    fake = case.bundle()
    told = GuardLook(moved=(), main=(), failing=(FailingFile(path=image, error=error),) if error else ())
    path = layout.evidence(layout.QUERY_BLOCK, layout.GUARD)
    return diagnose(gather_facts(e.Fake(fake.manifest, {**fake.files, path: msgspec.json.encode(told)})))


@pytest.mark.parametrize(("error", "where"), [("ENOTCONN", "peer"), ("EIO", "host")])
def test_a_file_that_fails_is_told_as_the_cause_of_what_will_fail(error: str, where: str) -> None:
    found = idle(error)
    assert (found.where, found.signature) == (where, "requests-fail"), found.headline
    assert error in found.headline


def test_a_file_that_answers_is_nothing() -> None:
    assert idle("").signature == "healthy"


def test_a_file_of_no_disk_is_no_cause() -> None:
    assert idle("ENOTCONN", image="/srv/fuse/log").signature == "healthy"
