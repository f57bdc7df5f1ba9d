from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopsy.bundle import layout
from autopsy.bundle.reader import open_bundle
from autopsy.diagnose.verdict import diagnose
from autopsy.diff.compare import ComparedCapture, difference, open_capture
from autopsy.diff.text import lines
from autopsy.facts.gather import gather_facts
from support import amputate, lab, stored


def autopsy(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "autopsy", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def named(start: str) -> stored.Stored:
    return next(case for case in stored.CASES if case.home.name.startswith(start))


def changed(case: stored.Stored, **replacements: tuple[bytes, bytes]) -> ComparedCapture:
    """Return a stored capture in which some words of its evidence are others; `_` stands for `everywhere`."""
    opened = open_bundle(case.bundle)
    files = dict(stored.files(case.bundle))
    for old, new in replacements.values():
        files = {name: data.replace(old, new) for name, data in files.items()}
    body = amputate.Body(msgspec.json.decode(files[layout.MANIFEST], type=type(opened.manifest)), files)
    facts = gather_facts(body)
    return ComparedCapture(replace(opened, manifest=body.manifest, files=files), facts, diagnose(facts))


def test_a_capture_and_itself_differ_in_nothing_and_every_request_is_stuck_in_both() -> None:
    one = open_capture(stored.right().bundle)
    found = difference(one, one)
    assert found.same_process
    for rows in (found.verdict, found.target, found.state, found.threads, found.moved, found.stacks, found.host):
        assert rows == ()
    (parked,) = [each for each in found.requests if each.park == "throttle"]
    assert parked.a == parked.b == len(parked.stuck_in_both) > 0
    assert [each.completed for each in found.disks] == [0] * len(found.disks)
    assert "no difference: verdict, state" in list(lines(found))[-1]


def test_two_vms_are_compared_by_what_they_say_and_not_by_their_addresses() -> None:
    found = difference(
        open_capture(named("lsi-throttle-7.2").bundle), open_capture(named("healthy-idle-10.0.2").bundle)
    )
    assert not found.same_process
    told = {row.what: (row.a, row.b) for row in found.verdict}
    assert told["where"] == ("throttle", "none")
    assert told["signature"] == ("throttle-timer-wait", "healthy")
    assert found.moved == ()
    assert {row.what for row in found.target} >= {"QEMU", "build-id", "-m"}
    (parked,) = [each for each in found.requests if each.park == "throttle"]
    assert (parked.b, parked.stuck_in_both) == (0, ())
    assert all(each.completed is msgspec.UNSET for each in found.disks)


def test_a_limit_that_was_changed_between_two_captures_is_told() -> None:
    case = named("throttle-node")
    found = difference(open_capture(case.bundle), changed(case, limit=(b'"bps-total":1,', b'"bps-total":70000,')))
    assert any("bps-total 1 → " in line and "bps-total 70000" in line for line in lines(found))


def test_a_request_at_another_place_is_not_the_same_request() -> None:
    case = stored.right()
    path = layout.evidence(layout.GDB_THREADS, layout.COROUTINES)
    told = json.loads(stored.files(case.bundle)[path])
    address = str(next(each["address"] for each in told if each["state"] == "parked" and len(each["frames"]) > 5))
    one, other = open_capture(case.bundle), changed(case, moved=(address.encode(), b"4096"))
    (before,) = [each for each in difference(one, one).requests if each.park == "throttle"]
    (after,) = [each for each in difference(one, other).requests if each.park == "throttle"]
    assert len(before.stuck_in_both) - len(after.stuck_in_both) in {0, 1}
    assert f"{int(address):#x}" not in after.stuck_in_both


def test_json_has_a_key_for_everything_and_text_is_what_a_person_reads(tmp_path: Path) -> None:
    a, b = named("lsi-throttle-7.2").bundle, named("healthy-idle-7.2").bundle
    done = autopsy("diff", a, b, "--json")
    assert done.returncode == 0
    found: dict[str, Any] = json.loads(done.stdout)
    assert list(found) == [
        *("a", "b", "same_process", "seconds", "verdict", "target", "state", "threads", "moved", "stacks"),
        *("requests", "disks", "throttle", "jobs", "host"),
    ]
    assert {"what": "where", "a": "throttle", "b": "none"} in found["verdict"]
    text = autopsy("diff", a, b).stdout
    assert text.startswith("A  ")
    assert "another process" in text
    assert "  where                  throttle → none\n" in text
    assert autopsy("diff", a, tmp_path / "gone.tar.zst").returncode == 2
    (tmp_path / "bad.tar.zst").write_bytes(b"no bundle")
    assert autopsy("diff", a, tmp_path / "bad.tar.zst").returncode == 7


def test_a_name_that_a_guest_chose_cannot_speak_to_the_terminal(tmp_path: Path) -> None:
    case = named("throttle-timer")
    folder = tmp_path / "strange"
    for name, data in stored.files(case.bundle).items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data.replace(b'"name": "t"', b'"name": "\\u001b[31m\\u202e"'))
    done = autopsy("diff", case.bundle, folder)
    assert done.returncode == 0
    assert "\\u001b[31m\\u202e" in done.stdout
    assert "\x1b" not in done.stdout


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_two_captures_with_anything_missing_still_differ_in_words(data: st.DataObject) -> None:
    case = data.draw(st.sampled_from(stored.CASES))
    files = stored.files(case.bundle)
    gone = data.draw(st.sets(st.sampled_from(sorted(files)), max_size=len(files)))
    opened = open_bundle(case.bundle)
    facts = gather_facts(amputate.Body(opened.manifest, {name: files[name] for name in files if name not in gone}))
    less = ComparedCapture(opened, facts, diagnose(facts))
    for pair in ((less, open_capture(case.bundle)), (open_capture(stored.CASES[0].bundle), less)):
        found = difference(*pair)
        assert msgspec.json.decode(msgspec.json.encode(found), type=type(found)) == found
        assert all(line == line.rstrip("\n") for line in lines(found))


@pytest.mark.live
def test_two_captures_of_one_vm_tell_what_went_on_and_what_did_not(stock: lab.Build, tmp_path: Path) -> None:
    with (
        lab.folder() as place,
        lab.qemu(
            stock,
            *("-drive", f"if=none,id=stuck0,format=raw,file={lab.disk(place / 'd.raw')},throttling.bps-total=1"),
            *("-device", "virtio-blk-pci,id=vd0,drive=stuck0"),
            *("-drive", f"if=none,id=well0,format=raw,file={lab.disk(place / 'e.raw')}"),
            *("-device", "virtio-blk-pci,id=vd1,drive=well0"),
        ) as machine,
    ):
        for number in range(3):
            machine.qemu_io("stuck0", f"aio_write {number}M 64k")
        for side in ("a", "b"):
            (tmp_path / side).mkdir()
            done = autopsy("capture", f"pid:{machine.pid}", "--fast", "--no-core", "--out", tmp_path / side)
            assert done.returncode == 0, done.stderr
            for number in range(5):
                machine.qemu_io("well0", f"aio_write {number}M 64k")  # a plain write is not counted
            machine.qemu_io("stuck0", "aio_write 9M 64k")
    a, b = (open_capture(next((tmp_path / side).glob("*.tar.zst"))) for side in ("a", "b"))
    found = difference(a, b)
    assert found.same_process
    assert found.seconds > 0
    assert found.verdict == () or {row.what for row in found.verdict} <= {"headline", "confidence"}
    (parked,) = [each for each in found.requests if each.park == "throttle"]
    assert (parked.a, parked.b, len(parked.stuck_in_both)) == (3, 4, 3)
    assert {each.name: each.completed for each in found.disks} == {"vd0": 0, "vd1": 5}


def test_command_lines_differ_by_their_options() -> None:
    a, b = (open_capture(named(name).bundle) for name in ("nbd-silent-7.2", "throttle-deadlock-10.0.2"))
    rows = [(row.what, row.a, row.b) for row in difference(a, b).target]
    assert ("-m", "64", "512") in rows
    assert ("-accel", "tcg", "tcg,thread=multi") in rows
    assert ("-cpu", "not given", "max") in rows
    assert not any(what.startswith("/") for what, _, _ in rows)


def test_a_long_time_between_two_captures_is_said_as_people_say_it() -> None:
    a, b = (open_capture(named(name).bundle) for name in ("nbd-silent-7.2", "throttle-deadlock-10.0.2"))
    days = msgspec.structs.replace(difference(a, b), seconds=-734374.5)
    assert "8.5 days earlier" in list(lines(days))[2]
