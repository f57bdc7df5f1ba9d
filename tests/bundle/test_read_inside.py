"""Whatever reads a stranger's bundle may die of it: the command that asked lives, and says so."""

from __future__ import annotations

import ast
import ctypes
from pathlib import Path

import pytest

import autopsy
from autopsy.bundle import archive
from autopsy.bundle import verify as reading
from autopsy.bundle.seal import seal
from autopsy.bundle.verify import verify
from autopsy.commands import examine, redact, unpacked
from autopsy.commands.verify import verify_boxed
from autopsy.errors import DamagedBundle, ExitCode
from autopsy.linux.confine.confined import AnswerPipe
from autopsy.linux.worker_pool import work_through
from autopsy.report import store
from tests.bundle.test_bundle import MANIFEST, staged


def falls(*_: object, **__: object) -> None:
    ctypes.string_at(0)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return seal(staged(tmp_path / "staging"), tmp_path / "a.tar.zst", MANIFEST).path


def test_to_verify_it(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "unpacked"
    folder.mkdir(mode=0o700)
    assert unpacked.unpack(bundle, folder)
    assert verify_boxed(folder).files == verify_boxed(bundle).files == verify(bundle).files
    assert verify_boxed(bundle).sha256 == verify(bundle).sha256
    monkeypatch.setattr(archive.tarfile, "open", falls)
    monkeypatch.setattr(reading, "decode_manifest", falls)
    for path in (bundle, folder):
        with pytest.raises(DamagedBundle, match="what read it ended: it died: SIGSEGV") as raised:
            verify_boxed(path)
        assert raised.value.exit_code == ExitCode.MISMATCH


def test_to_unpack_it(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacked, "members", falls)
    with pytest.raises(DamagedBundle, match="what read it ended: it died: SIGSEGV"):
        examine.debug(bundle, ())


def test_to_diagnose_it(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "unpacked"
    folder.mkdir(mode=0o700)
    assert unpacked.unpack(bundle, folder)
    assert (folder / "manifest.json").read_bytes()
    monkeypatch.setattr(store, "diagnose", falls)
    with pytest.raises(DamagedBundle, match="SIGSEGV"):
        store.write_answers(folder)


def test_to_redact_it(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redact, "_redact", falls)
    with pytest.raises(DamagedBundle, match="SIGSEGV"):
        redact.redact(bundle, None)
    assert not list(bundle.parent.glob(".redacting-*"))


@pytest.mark.parametrize("lie", ["../escaped", "/etc/escaped", "a/../../escaped", "twice"])
def test_one_that_was_taken_over_unpacks_nothing_outside_and_nothing_twice(
    lie: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "unpacked"
    folder.mkdir(mode=0o700)

    def lies(_held: object, line: AnswerPipe) -> bytes:
        for name in ("twice", lie):
            line.tell("file", name.encode())
            line.tell("part", b"a stranger's")
        return b""

    monkeypatch.setattr(unpacked, "_tell", lies)
    with pytest.raises(DamagedBundle, match="what read it told of"):
        unpacked.unpack(bundle, folder)
    assert [each.name for each in folder.iterdir()] == ["twice"]
    assert not (tmp_path / "escaped").exists()


def test_a_worker_of_replay_reads_its_cases_alone(tmp_path: Path) -> None:
    case, secret = tmp_path / "case", tmp_path / "secret"
    case.write_bytes(b"a case")
    secret.write_bytes(b"another's")
    tries = (case, secret, Path("/etc/passwd"), Path("/proc/self/environ"))

    def work(index: int) -> bytes:
        return tries[index].read_bytes()

    done = {each.index: each for each in work_through(len(tries), work, jobs=1, readable=(case,))}
    assert done[0].answer == b"a case"
    assert [done[index].error.partition(":")[0] for index in (1, 2, 3)] == ["PermissionError"] * 3


# What decompresses; a worker of replay and the reports do it inside.
UNPACKS = {"open_bundle", "verify", "verify_archive", "members"}
OUTSIDE = ("capture", "cli", "commands", "doctor", "kill", "store", "target")
INSIDE = {"unpacked.py": {"members"}, "stored.py": {"members"}, "verify.py": {"verify_archive"}}


def test_no_command_unpacks_anything_outside_the_sandbox() -> None:
    """Which of a file's names lead to what unpacks, by its imports: those that do work for the sandbox are listed."""
    found = {
        str(path): names
        for folder in OUTSIDE
        for path in (Path(autopsy.__file__).parent / folder).rglob("*.py")
        if (names := imported(path) & UNPACKS - INSIDE.get(path.name, set()))
    }
    assert found == {}


def imported(path: Path) -> set[str]:
    nodes = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom))
    return {alias.name for node in nodes if (node.module or "").startswith("autopsy.bundle") for alias in node.names}
