"""Bundles get to their place whole, or wait; what went wrong is told, and nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyrage
import pytest

from autopsy.bundle.reader import open_bundle
from autopsy.commands.fleet.send import send_bundles
from autopsy.errors import AutopsyError, ExitCode, UsageError
from autopsy.fleet.places import backoff
from autopsy.fleet.places.place import PlaceFailed, PlaceRefused
from autopsy.fleet.places.sealed import check_recipients
from autopsy.fleet.sending import spool
from autopsy.fleet.sending.send import SentBundle
from support import lab
from support.built import buckets, fleets

STORED = lab.HOUSE / "fixtures/throttle-deadlock-10.0.2-debug/bundle.tar.zst"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a store of this test's own, with one bundle in it."""
    store = tmp_path / "autopsy"
    store.mkdir(mode=0o700)
    monkeypatch.setenv("STATE_DIRECTORY", str(store))
    (store / "one.tar.zst").write_bytes(STORED.read_bytes())
    return store


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[buckets.S3Server]:
    with buckets.s3_server(tmp_path_factory.mktemp("s3"), volumes=1) as server:
        yield server


def send(bundle: Path, place: Path | str, **how: Any) -> SentBundle | AutopsyError:
    """Send one bundle as the command does, and return what became of it."""
    (done,) = send_bundles((bundle,), str(place), say=lambda _: None, **how)
    found = done.sent or done.error
    assert found is not None
    return found


def waiting() -> list[Path]:
    return [entry.file for entry in spool.entries()]


def test_a_bundle_goes_to_a_folder_under_the_name_of_its_content_and_once(home: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    told = fleets.asked("send", home / "one.tar.zst", place)["sent"][0]
    digest = fleets.sha256(STORED)
    assert (told["key"], told["new"]) == (f"bundles/{digest[:2]}/{digest}.tar.zst", True)
    assert (place / told["key"]).read_bytes() == STORED.read_bytes()
    assert send(home / "one.tar.zst", place) == SentBundle(told["key"], digest, STORED.stat().st_size, new=False)
    assert waiting() == []
    assert [path for path in place.rglob("*") if path.is_file()] == [place / told["key"]]


def test_what_is_no_sealed_bundle_is_not_sent(home: Path, tmp_path: Path) -> None:
    (home / "x.work").mkdir()
    (home / "x.tar.zst").write_bytes(b"half")
    for each in ("x.work", "x.tar.zst", "gone.tar.zst"):
        with pytest.raises(UsageError):
            send(home / each, tmp_path / "place")
    with pytest.raises(UsageError):
        send(home / "one.tar.zst", "ftp://host/x")
    assert waiting() == []
    assert not (tmp_path / "place").exists()


def test_a_place_without_room_is_told_and_the_bundle_waits_even_where_it_is_removed(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "FIRST_SECONDS", 0.01)
    (told,) = send_bundles((home / "one.tar.zst",), "/proc/place", say=lambda _: None)
    assert isinstance(told.error, PlaceFailed)
    (home / "one.tar.zst").unlink()
    (left,) = waiting()
    assert left.read_bytes() == STORED.read_bytes()
    (entry,) = spool.entries()
    assert entry.note.tried == 1


def test_a_copy_for_strangers_is_sent_and_another_run_knows_it(home: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    told = send(home / "one.tar.zst", place, hide=True)
    assert isinstance(told, SentBundle)
    assert told.sha256 != fleets.sha256(STORED)
    assert any(note.startswith("redacted") for note in open_bundle(place / told.key).manifest.notes)
    assert send(home / "one.tar.zst", place, hide=True) == replace(told, new=False)


def test_what_is_encrypted_is_read_by_its_recipient_alone(home: Path, tmp_path: Path) -> None:
    place, identity = tmp_path / "place", pyrage.x25519.Identity.generate()
    told = send(home / "one.tar.zst", place, recipients=(str(identity.to_public()),))
    assert isinstance(told, SentBundle)
    assert told.key.endswith(".tar.zst.age")
    assert STORED.read_bytes()[:64] not in (place / told.key).read_bytes()
    for name, key in (("right", identity), ("wrong", pyrage.x25519.Identity.generate())):
        (tmp_path / name).write_text(f"# made by a test\n{key}\n")
    index = tmp_path / "index"
    fleets.index(index, place)
    assert [row["error"] for row in fleets.rows(index)] == ["it is encrypted, and no --identity was given"]
    fleets.index(index, place, identity=str(tmp_path / "wrong"), analyzer="wrong")
    fleets.index(index, place, identity=str(tmp_path / "right"), again=True)
    found = {row["analyzer"]: row for row in fleets.rows(index)}
    assert "cannot be decrypted" in found.pop("wrong")["error"]
    ((_, row),) = found.items()
    assert (row["error"], row["signature"]) == ("", "throttle-lock-self-deadlock")
    with pytest.raises(UsageError):
        check_recipients(("age1nobody",))


def test_credentials_that_only_put_are_enough_and_wrong_ones_are_told(
    home: Path, server: buckets.S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.environment("hypervisor", secret="wrong").items():  # noqa: S106 - that is the point
        monkeypatch.setenv(name, value)
    place = f"s3://{buckets.BUCKET}"
    fleets.command("send", home / "one.tar.zst", place, code=ExitCode.NOT_PERMITTED)
    assert buckets.files(server) == {}
    assert len(waiting()) == 1
    for name, value in server.environment("hypervisor").items():
        monkeypatch.setenv(name, value)
    told = fleets.asked("send", "--spooled")
    assert [each["new"] for each in told["sent"]] == [True]
    assert waiting() == []
    assert not fleets.asked("send", home / "one.tar.zst", place)["sent"][0]["new"]
    fleets.command("diagnose", place, "--into", home, code=ExitCode.NOT_STORED)
    assert list(buckets.files(server).values()) == [STORED.stat().st_size]


def test_a_full_store_is_told_and_holds_no_half(
    home: Path, server: buckets.S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's only volume is another bucket's: for this one it has no room."""
    for name, value in server.environment("admin").items():
        monkeypatch.setenv(name, value)
    spool.enqueue(home / "one.tar.zst", "s3://other/x")
    told = fleets.asked("send", "--spooled", code=ExitCode.NOT_STORED)
    assert told["waiting"][0]["why"]
    assert len(waiting()) == 1
    assert buckets.files(server, "s3://other/x") == {}


def test_a_sender_that_is_killed_over_a_slow_link_leaves_no_half_and_loses_nothing(
    home: Path, server: buckets.S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = home / "large.tar.zst"
    bundle.write_bytes(
        STORED.read_bytes() + b"\x50\x2a\x4d\x18" + (900_000).to_bytes(4, "little") + os.urandom(900_000)
    )
    digest = fleets.sha256(bundle)
    before = buckets.files(server)
    with buckets.Link(server.ports[3], 800_000) as link:
        for name, value in server.environment("hypervisor", link.port).items():
            monkeypatch.setenv(name, value)
        words = [sys.executable, "-m", "autopsy", "fleet", "send", str(bundle), f"s3://{buckets.BUCKET}"]
        sender = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while link.passed < 200_000:
            assert sender.poll() is None, sender.communicate()
            time.sleep(0.02)
        buckets.kill(sender)
    time.sleep(0.2)
    assert buckets.files(server) == before
    assert len(waiting()) == 1
    with buckets.Link(server.ports[3], 4_000_000) as link:
        for name, value in server.environment("hypervisor", link.port).items():
            monkeypatch.setenv(name, value)
        assert fleets.asked("send", "--spooled")["sent"][0]["sha256"] == digest
    assert set(buckets.files(server).items()) - set(before.items()) == {
        (f"bundles/{digest[:2]}/{digest}.tar.zst", bundle.stat().st_size)
    }
    assert waiting() == []


def test_a_bucket_is_diagnosed_into_a_bucket_and_asked(
    home: Path, server: buckets.S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.environment("admin").items():
        monkeypatch.setenv(name, value)
    place = f"s3://{buckets.BUCKET}/day"
    folder = tmp_path / "some"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.tar.zst").write_bytes(fleets.bundle(number))
    fleets.command("send", *sorted(folder.iterdir()), place)
    told = fleets.asked("diagnose", place, "--into", f"{place}/index")
    assert (told["bundles"], told["errors"]) == (3, 0)
    assert fleets.asked("diagnose", place, "--into", f"{place}/index")["known"] == 3
    same = "SELECT bundle, cluster, signature FROM diagnoses ORDER BY bundle"
    found = fleets.asked("query", same, "--from", f"{place}/index")["rows"]
    assert len(list((home / "index").rglob("*.parquet"))) == 1
    fleets.index(tmp_path / "index", folder)
    assert found == fleets.rows(tmp_path / "index", same)


@pytest.mark.soak
def test_a_server_that_is_killed_in_the_middle_of_an_upload_holds_no_half(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = home / "large.tar.zst"
    bundle.write_bytes(
        STORED.read_bytes() + b"\x50\x2a\x4d\x18" + (900_000).to_bytes(4, "little") + os.urandom(900_000)
    )
    (tmp_path / "s3").mkdir()
    with buckets.s3_server(tmp_path / "s3") as server:
        with buckets.Link(server.ports[3], 400_000) as link:
            for name, value in server.environment("hypervisor", link.port).items():
                monkeypatch.setenv(name, value)
            spool.enqueue(bundle, f"s3://{buckets.BUCKET}")
            words = [sys.executable, "-m", "autopsy", "fleet", "send", "--spooled", "--json"]
            sender = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            while link.passed < 200_000:
                assert sender.poll() is None, sender.communicate()
                time.sleep(0.02)
            server.kill()
            out, _ = sender.communicate(timeout=60)
            assert sender.returncode == ExitCode.NOT_STORED
            assert json.loads(out)["waiting"][0]["why"]
        server.start()
        assert buckets.files(server) == {}
        for name, value in server.environment("hypervisor").items():
            monkeypatch.setenv(name, value)
        assert fleets.asked("send", "--spooled")["sent"][0]["new"]
        assert list(buckets.files(server).values()) == [bundle.stat().st_size]


def test_to_write_down_what_is_to_be_sent_reads_nothing_and_asks_nobody(home: Path) -> None:
    with buckets.environment({"AWS_ENDPOINT": "http://192.0.2.1:1"}):
        began = time.process_time()
        entry = spool.enqueue(home / "one.tar.zst", "s3://bucket/x", redact=True)
        assert time.process_time() - began < 0.5
    assert entry.path.stat().st_mode & 0o777 == 0o600
    assert os.path.samefile(entry.path.with_suffix(".tar.zst"), home / "one.tar.zst")


def test_tries_come_later_and_later_and_never_together() -> None:
    assert list(backoff.waits(8, lambda: 1.0)) == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert list(backoff.waits(3, lambda: 0.25)) == [0.25, 0.5]
    assert list(backoff.waits(1)) == []
    assert len({tuple(backoff.waits()) for _ in range(20)}) == 20


def test_what_may_work_later_is_tried_again_and_what_is_refused_is_not() -> None:
    tried: list[str] = []
    slept: list[float] = []

    def work(error: type[AutopsyError], times: int) -> str:
        tried.append("x")
        if len(tried) <= times:
            raise error("place", "why", remedy="none")
        return "done"

    assert backoff.patiently(lambda: work(PlaceFailed, 3), sleep=slept.append) == "done"
    assert (len(tried), len(slept)) == (4, 3)
    tried.clear()
    with pytest.raises(PlaceFailed):
        backoff.patiently(lambda: work(PlaceFailed, 9), sleep=slept.append)
    assert len(tried) == backoff.TRIES
    tried.clear()
    with pytest.raises(PlaceRefused):
        backoff.patiently(lambda: work(PlaceRefused, 9), sleep=slept.append)
    assert len(tried) == 1
