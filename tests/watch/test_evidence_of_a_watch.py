"""What a watch had seen comes into the bundle of a capture, and from there into the verdict and every report."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from autopsy.bundle import layout
from autopsy.bundle.reader import open_bundle
from autopsy.bundle.ring import Ring, RingHeader, RingSample, decode, encode
from autopsy.capture.staging.staging import prepare
from autopsy.commands.redact import redact
from autopsy.diagnose.seen_before import FRESH_NS
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.cite import Unknown
from autopsy.facts.gather import gather_facts
from autopsy.linux import clocks
from autopsy.report.draw.minute_before import TALL, draw_minute
from autopsy.report.render import render
from autopsy.watch import ring
from support import lab

CASE = lab.HOUSE / "fixtures" / "nbd-silent-watched-7.2" / "bundle.tar.zst"
HEALTHY = lab.HOUSE / "fixtures" / "healthy-writer-7.2" / "bundle.tar.zst"
PATH = layout.evidence(layout.WATCH, layout.RING)
SECOND = 10**9


class Rewritten:
    """A stored bundle with another ring, or none."""

    def __init__(self, bundle: Path, change: Callable[[Ring], Ring | bytes] | None) -> None:
        self.bundle = open_bundle(bundle)
        self.manifest = self.bundle.manifest
        target = self.manifest.target
        found = self.bundle.read(PATH)
        blank = Ring(RingHeader(pid=target.pid, start_ticks=target.start_ticks, boot_id=""), ())
        made = change(decode(found) if found else blank) if change else b""
        self.ring = encode(made) if isinstance(made, Ring) else made

    def read(self, path: str) -> bytes:
        return self.ring if path == PATH else self.bundle.read(path)

    def names(self) -> tuple[str, ...]:
        return self.bundle.names()


def since(change: Callable[[Ring], Ring | bytes] | None, bundle: Path = CASE) -> str:
    return diagnose(gather_facts(Rewritten(bundle, change))).since


def header(**given: object) -> Callable[[Ring], Ring]:
    return lambda found: Ring(msgspec.structs.replace(found.header, **given), found.samples)


def test_the_verdict_says_since_when_and_who_saw_it() -> None:
    told = diagnose(gather_facts(open_bundle(CASE)))
    assert told.signature == "nbd-silent"
    assert "a watch saw it: no block request moved since 22:38:30 UTC, 12.4 s before this capture" in told.since
    assert "it had moved at 22:38:27 UTC" in told.since


def test_without_the_ring_the_verdict_is_the_same_and_claims_to_have_seen_nothing_before() -> None:
    told, without = (diagnose(gather_facts(each)) for each in (open_bundle(CASE), Rewritten(CASE, None)))
    assert "watch" not in without.since
    assert msgspec.structs.replace(told, since="") == msgspec.structs.replace(without, since="")


@pytest.mark.parametrize(
    "change",
    [
        header(pid=1),
        header(start_ticks=1),
        header(schema=99),
        header(began_monotonic_ns=None),
        header(kind="something new"),
        header(began_monotonic_ns=2**62),
        lambda found: Ring(found.header, ()),
        lambda found: encode(found)[:-40],
        lambda _: b"\xff\n{}",
        lambda found: Ring(
            found.header,
            tuple(
                msgspec.structs.replace(each, monotonic_ns=each.monotonic_ns - FRESH_NS - 5 * SECOND)
                for each in found.samples
            ),
        ),
    ],
)
def test_a_ring_of_another_process_a_broken_one_or_one_of_a_watch_that_had_ended_says_nothing(
    change: Callable[[Ring], Ring | bytes],
) -> None:
    assert "watch" not in since(change)


def test_a_bundle_may_claim_any_number() -> None:
    for number in (-(2**62), 0, 1):
        assert "12.4 s" not in since(header(began_monotonic_ns=number, seen_moving_ns=-(2**62)))


def test_of_a_vm_that_is_well_again_it_is_told_that_it_was_not() -> None:
    began = open_bundle(HEALTHY).manifest.began.monotonic_ns

    def stood(ms: int) -> Callable[[Ring], Ring]:
        samples = [
            RingSample(monotonic_ns=began - ago * SECOND, state="watched", oldest_unmoved_ms=ms if ago > 5 else 0)
            for ago in range(60, 0, -2)
        ]
        return lambda found: Ring(found.header, tuple(samples))

    assert since(stood(9200), HEALTHY) == (
        "a watch saw a request stand still for 9.2 s within the minute before; by this capture it was over"
    )
    assert since(stood(900), HEALTHY) == ""
    told, well = (diagnose(gather_facts(Rewritten(HEALTHY, stood(ms)))) for ms in (9200, 900))
    assert (well.signature, well.confidence) == ("healthy", "proven")
    assert (told.signature, told.confidence) == ("healthy", "likely")
    assert "Nothing is stuck now, but a watch saw a request stand still for 9.2 s" in told.headline


def test_a_main_loop_that_did_not_come_round_just_before_contradicts_that_all_is_proven_well() -> None:
    began = open_bundle(HEALTHY).manifest.began.monotonic_ns
    sample = RingSample(monotonic_ns=began - SECOND, state="watched")

    def stood(seconds: int) -> Callable[[Ring], Ring]:
        return lambda found: Ring(
            msgspec.structs.replace(found.header, kind="mainloop", began_monotonic_ns=began - seconds * SECOND),
            (sample,),
        )

    told, passing = (diagnose(gather_facts(Rewritten(HEALTHY, stood(seconds)))) for seconds in (12, 4))
    assert (told.where, told.confidence, passing.confidence) == ("none", "likely", "proven")
    assert "the main loop did not come round since" in told.headline
    assert "by this capture it was over" in told.headline


def test_the_report_draws_the_minute_before_and_the_post_mortem_has_its_beginning() -> None:
    page = render(CASE, "html")
    assert "The minute before" in page
    assert page.count('id="before"') == 1
    assert "as a watch saw, no block request moved from then on (`watch/ring.jsonl:1`)" in render(CASE, "md")
    assert "The minute before" not in render(HEALTHY, "html")


def test_the_drawing_stays_in_its_frame_whatever_the_samples_are() -> None:
    def wild(found: Ring) -> Ring:
        numbers = (0, -5, 2**40, 7)
        samples = (
            RingSample(monotonic_ns=place * 3, state="<b>", requests=number, unmoved=number * 9, threads_in_d=-number)
            for place, number in enumerate(numbers)
        )
        return Ring(found.header, tuple(samples))

    facts = gather_facts(Rewritten(CASE, wild))
    drawing = draw_minute(facts, _calendar())
    assert drawing is not None
    for row in drawing.rows:
        for bar in row.bars:
            assert 0 <= bar.stuck <= bar.height <= TALL
            assert drawing.left <= bar.x <= drawing.width


def _calendar() -> object:
    from autopsy.report.clock_text import calendar  # noqa: PLC0415 - for one test

    return calendar(open_bundle(CASE).manifest.began)


def test_a_redacted_bundle_keeps_the_ring_and_not_which_boot_it_was(tmp_path: Path) -> None:
    bundle = open_bundle(CASE)
    folder = tmp_path / "bundle"
    for name in bundle.names():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(bundle.read(name))
    boot = "6dd6ec4d-0a5e-4f4e-8f24-0d4e3a7b5c11"
    found = decode(bundle.read(PATH))
    named = Ring(msgspec.structs.replace(found.header, boot_id=boot), found.samples)
    (folder / PATH).write_bytes(encode(named))
    done = redact(folder, tmp_path / "redacted.tar.zst")
    assert done.same
    kept = open_bundle(tmp_path / "redacted.tar.zst").read(PATH)
    assert boot.encode() not in kept
    assert decode(kept).samples == found.samples


@pytest.fixture
def own_ring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Leave a ring of this very process, as a watch does."""
    monkeypatch.setattr(ring, "RUN", tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folder = ring.open_run_folder()
    boot = clocks.host().boot_id
    ring.write(folder, Ring(RingHeader(pid=os.getpid(), start_ticks=7, boot_id=boot), ()))
    os.close(folder)
    return ring.run_folder() / ring.file_name(os.getpid(), 7)


def taken(start_ticks: int = 7) -> bytes:
    return ring.of_this_process(os.getpid(), start_ticks, clocks.host().boot_id)


def test_a_ring_is_taken_only_from_a_folder_and_a_file_that_are_ours_alone(own_ring: Path) -> None:
    assert taken() == own_ring.read_bytes()
    assert taken(8) == b""  # no such file
    shutil.copyfile(own_ring, own_ring.with_name(ring.file_name(os.getpid(), 8)))
    assert taken(8) == b""  # another process's, by its own words
    assert ring.of_this_process(os.getpid(), 7, "another boot") == b""
    own_ring.chmod(0o620)
    assert taken() == b""
    own_ring.chmod(0o600)
    own_ring.parent.chmod(0o770)
    assert taken() == b""
    own_ring.parent.chmod(0o700)
    data = own_ring.read_bytes()
    own_ring.write_bytes(data + b" " * ring.MOST_BYTES)
    assert taken() == b""
    own_ring.unlink()
    (own_ring.parent / "elsewhere").write_bytes(data)
    own_ring.symlink_to(own_ring.parent / "elsewhere")
    assert taken() == b""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_ring_that_another_user_owns_is_not_taken(own_ring: Path) -> None:
    os.chown(own_ring, 12345, 12345)
    assert taken() == b""
    os.chown(own_ring, 0, 0)
    os.chown(own_ring.parent, 12345, 12345)
    assert taken() == b""


def test_it_lies_in_the_bundle_as_evidence_of_no_step(tmp_path: Path) -> None:
    staging = prepare("autopsy-x-20260101T000000Z", (tmp_path,))
    try:
        staging.put_evidence(layout.WATCH, layout.RING, b"x\n")
        assert (staging.work / PATH).read_bytes() == b"x\n"
    finally:
        staging.clear()


def test_where_no_watch_runs_nothing_is_said_of_one() -> None:
    found = gather_facts(open_bundle(HEALTHY)).before
    assert isinstance(found, Unknown)
    assert "watch" not in diagnose(gather_facts(open_bundle(HEALTHY))).since
