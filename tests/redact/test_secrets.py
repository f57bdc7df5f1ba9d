"""One list says what is a secret, and who captures, redacts and reports goes by it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from autopsy.capture.host import vm_files
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from autopsy.redact.command_line import command_line
from autopsy.redact.pseudonyms import Pseudonyms
from autopsy.redact.secrets import without_secrets
from autopsy.report.bug_report import bug_report
from support.built import evidence as e
from support.built.secrets import planted

PLANTED = planted()
# Names of somebody are no secrets of a configuration: they are for whoever may read the bundle, and not for strangers.
NAMES = ("@bank", "iqn.", "naa.", "0x5", "wwn-", "50:06")


def test_more_than_sixty_secrets_are_planted() -> None:
    assert len({secret for _, secret in PLANTED}) == len(PLANTED) > 60


@pytest.mark.parametrize(("line", "secret"), PLANTED)
def test_no_planted_secret_outlives_a_redaction(line: str, secret: str) -> None:
    hide = Pseudonyms()
    assert secret not in hide.text(f"before {line} after")
    assert secret.encode() not in command_line(f"qemu\0-x\0{line}\0".encode(), hide)


@pytest.mark.parametrize(("line", "secret"), [pair for pair in PLANTED if not any(name in pair[0] for name in NAMES)])
def test_no_planted_secret_of_a_configuration_is_captured(line: str, secret: str) -> None:
    assert secret.encode() not in vm_files.hidden(f"name: web1\n{line}\nmemory: 512\n".encode())


def test_a_bug_report_tells_none_of_the_planted_secrets() -> None:
    case = e.Case()
    case.idle_threads()
    case.parked(e.THROTTLED_LEGACY, 3)
    case.monitor()
    case.command_line = ("-name", "guest=devvm", *(line for line, _ in PLANTED))
    bundle = case.bundle()
    facts = gather_facts(bundle)
    text = bug_report(bundle.manifest, facts, diagnose(facts))
    assert [secret for _, secret in PLANTED if secret in text] == []


@pytest.mark.parametrize(
    "line",
    [
        "-drive file=x,key-secret=sec0",
        "-device virtio-blk-pci,drive=d0,id=tokenless0".replace("tokenless", "disk"),
        "#0  futex_wait (private=0, expected=2) at ../sysdeps/nptl/futex-internal.h:146",
        "waits for the throttle group's lock; its owner is thread 1000",
        "query-status is answered, query-block was not",
        "10:47:42 0000:00:1f.2",
    ],
)
def test_what_is_no_secret_stays_as_it_is(line: str) -> None:
    assert without_secrets(line) == line


@given(some.text(max_size=400))
def test_a_text_has_as_many_lines_as_before_and_is_done_after_once(text: str) -> None:
    hidden = without_secrets(text)
    assert hidden.count("\n") == text.count("\n")
