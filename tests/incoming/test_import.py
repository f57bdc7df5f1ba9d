"""`autopsy import` makes a bundle of what others took, and everything that reads bundles works on it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autopsy.bundle import layout
from autopsy.bundle.reader import open_bundle
from support.builds import missing
from support.built import pastes
from support.built.monitor_text import DOMAIN, HMP
from support.built.pastes import DISPATCH, POLL, STARTED

WEDGED = pastes.dump(
    ("worker", ("fdatasync", "handle_aiocb_flush", "worker_thread", *STARTED)),
    ("qemu-system-x86", (*POLL, "bdrv_drain_all_begin", "do_vm_stop", *DISPATCH)),
)


def autopsy(*words: str | Path, given: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "autopsy", *map(str, words)]
    return subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=300)


def imported(place: Path, *words: str | Path, given: str | None = None) -> dict[str, Any]:
    done = autopsy("import", *words, "--json", "--out", place, given=given)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("imported")
    text = place / "bt.txt"
    text.write_text(WEDGED)
    return Path(imported(place, text)["bundle"])


def test_the_answer_has_the_keys_that_programs_rely_on(tmp_path: Path) -> None:
    text = tmp_path / "bt.txt"
    text.write_text(WEDGED)
    found = imported(tmp_path, text)
    assert set(found) == {"bundle", "report", "sha256", "source", "verdict", "notes"}
    assert found["verdict"]["where"] == "host"
    assert found["verdict"]["confidence"] == "consistent"
    assert found["source"] == ["bt.txt: a backtrace"]
    assert any("Next time" in note for note in found["notes"])
    assert any(each["when"] == "later" and "autopsy capture" in each["command"] for each in found["verdict"]["advice"])
    assert Path(found["report"]).is_file()


def test_the_manifest_says_imported_and_what_was_not_taken(bundle: Path) -> None:
    opened = open_bundle(bundle)
    told = opened.manifest.imported
    assert told is not None
    assert [(each.name, each.what, each.stored) for each in told.files] == [
        ("bt.txt", "a backtrace", layout.evidence(layout.GIVEN, "1"))
    ]
    assert opened.read(told.files[0].stored).decode() == WEDGED
    outcomes = {step.name: (step.outcome, step.why) for step in opened.manifest.steps}
    assert outcomes[layout.GDB_THREADS][0] == "Collected"
    assert outcomes[layout.WITNESS] == ("Skipped", "imported: not taken")


@pytest.mark.parametrize(
    "words",
    [
        ("verify",),
        ("analyze",),
        ("report", "--format", "md"),
        ("report", "--format", "bug"),
        ("report", "--format", "json"),
        ("replay",),
    ],
)
def test_what_reads_bundles_reads_an_imported_one(bundle: Path, words: tuple[str, ...]) -> None:
    done = autopsy(words[0], bundle, *words[1:])
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_report_says_where_it_comes_from(bundle: Path) -> None:
    done = autopsy("report", bundle)
    assert "bt.txt" in done.stdout
    assert "others took it" in done.stdout


def test_two_imports_are_compared(bundle: Path, tmp_path: Path) -> None:
    text = tmp_path / "later.txt"
    text.write_text(pastes.dump(("qemu-system-x86", pastes.IDLE_MAIN)))
    other = imported(tmp_path, text)["bundle"]
    done = autopsy("diff", bundle, other)
    assert done.returncode == 0, done.stderr


def test_a_redacted_import_holds_neither_the_file_nor_its_name(tmp_path: Path) -> None:
    text = tmp_path / "customer-acme-web7.txt"
    text.write_text(f"Host web7.acme.example, password=hunter2hunter2\n{WEDGED}")
    made = Path(imported(tmp_path, text)["bundle"])
    copy = tmp_path / "copy.tar.zst"
    done = autopsy("redact", made, "-o", copy)
    assert done.returncode == 0, done.stderr
    opened = open_bundle(copy)
    whole = b"".join(opened.read(name) for name in opened.names()).decode("utf-8", "replace")
    assert "acme" not in whole
    assert "hunter2" not in whole
    assert autopsy("analyze", copy).stdout == autopsy("analyze", made).stdout


def test_a_redacted_import_holds_nothing_of_whose_the_vm_was(tmp_path: Path) -> None:
    text = tmp_path / "all.txt"
    domain = DOMAIN.replace("web1", "acme-web7").replace("/srv/", "/srv/acme-kunden/")
    text.write_text(f"{domain}\n{HMP.replace('a.qcow2', '/srv/acme-kunden/a.qcow2')}\n{WEDGED}")
    made = Path(imported(tmp_path, text)["bundle"])
    assert b"acme" in open_bundle(made).read(layout.evidence(layout.HOST, layout.VM_CONFIG))
    copy = tmp_path / "copy.tar.zst"
    done = autopsy("redact", made, "-o", copy)
    assert done.returncode == 0, done.stderr
    opened = open_bundle(copy)
    assert b"acme" not in b"".join(opened.read(name) for name in opened.names())
    assert json.loads(autopsy("analyze", copy, "--json").stdout)["where"] == "host"


def test_an_import_without_a_core_has_nothing_to_examine(bundle: Path) -> None:
    done = autopsy("examine", bundle)
    assert done.returncode == 2
    assert "core" in done.stderr


def test_a_pipe_is_read(tmp_path: Path) -> None:
    found = imported(tmp_path, "-", given=pastes.in_markdown(pastes.quoted(WEDGED)))
    assert found["verdict"]["where"] == "host"


def test_several_files_are_one_import(tmp_path: Path) -> None:
    one, other = tmp_path / "1.txt", tmp_path / "2.txt"
    one.write_text(WEDGED)
    other.write_text(WEDGED)
    found = imported(tmp_path, one, other)
    assert len(found["source"]) == 2
    assert open_bundle(Path(found["bundle"])).read(layout.evidence(layout.SECOND_EXPOSURE, layout.THREADS))


@pytest.mark.parametrize(
    ("name", "data", "seems"),
    [
        ("letter.txt", b"Dear all,\nthe VM hangs. #1 priority!\n", "text without"),
        ("empty", b"", "an empty file"),
        ("disk.qcow2", b"QFI\xfb" + bytes(1000), "a disk image"),
        ("noise", bytes(range(256)) * 10, "binary data"),
        ("program", b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\0" + bytes(100), "an ELF file, but no core"),
        ("broken.zst", b"\x28\xb5\x2f\xfd" + bytes(range(200)), "could not be read to its end"),
    ],
)
def test_a_file_of_no_use_is_told_for_what_it_seems_and_what_was_looked_for(
    name: str, data: bytes, seems: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data)
    done = autopsy("import", tmp_path / name, "--out", tmp_path)
    assert done.returncode == 2
    assert seems in done.stderr
    assert "looked for" in done.stderr
    assert list(tmp_path.glob("*.tar.zst")) == []


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    done = autopsy("import", tmp_path / "none.txt")
    assert done.returncode == 2
    assert "No such file" in done.stderr


@pytest.mark.timeout(300)
def test_a_core_that_gcore_took_is_verified_examined_and_redacted(tmp_path: Path) -> None:
    if not shutil.which("gcore"):
        missing("apt install gdb")
    sleeper = subprocess.Popen(
        [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"], stdout=subprocess.PIPE
    )
    try:
        assert sleeper.stdout is not None
        sleeper.stdout.readline()
        subprocess.run(
            ["gcore", "-o", tmp_path / "core", str(sleeper.pid)],
            check=True,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=100,
        )
    finally:
        sleeper.kill()
        sleeper.communicate()
    found = imported(tmp_path, tmp_path / f"core.{sleeper.pid}")
    made = Path(found["bundle"])
    assert found["source"] == [f"core.{sleeper.pid}: a core"]
    assert found["verdict"]["where"] == "unknown"  # it is no QEMU, and lived on
    told = open_bundle(made).manifest.imported
    assert told is not None
    assert (told.whole, told.crash) == (True, "")
    for words in (
        ("verify", made),
        ("examine", made, "--out", tmp_path),
        ("redact", made, "-o", tmp_path / "r.tar.zst"),
    ):
        done = autopsy(*words)
        assert done.returncode == 0, done.stderr
    assert layout.CORE not in open_bundle(tmp_path / "r.tar.zst").names()
