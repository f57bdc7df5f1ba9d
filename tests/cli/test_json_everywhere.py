"""What checks or makes a bundle answers programs as well as people."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from autopsy.bundle.reader import open_bundle
from autopsy.cli.json_output import verdict_json
from autopsy.diagnose.diagnosis import UNKNOWN, Unproven
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from support import stored
from tests.support.built import pastes
from tests.support.built.pastes import DISPATCH, POLL, STARTED

PASTE = pastes.dump(
    ("worker", ("fdatasync", "handle_aiocb_flush", "worker_thread", *STARTED)),
    ("qemu-system-x86", (*POLL, "bdrv_drain_all_begin", "do_vm_stop", *DISPATCH)),
)


def answer(*words: str | Path, code: int = 0) -> Any:
    command = [sys.executable, "-m", "autopsy", *map(str, words), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("imported")
    (place / "bt.txt").write_text(PASTE)
    return Path(answer("import", place / "bt.txt", "--out", place)["bundle"])


def test_a_whole_bundle_and_a_bent_one_are_both_told(bundle: Path, tmp_path: Path) -> None:
    whole = answer("verify", bundle)
    assert (whole["whole"], whole["why"], whole["signed_by"]) == (True, "", "")
    assert whole["files"] > 3
    assert len(whole["sha256"]) == 64
    bent = tmp_path / "bent.tar.zst"
    data = bytearray(bundle.read_bytes())
    data[len(data) // 2] ^= 0xFF
    bent.write_bytes(data)
    told = answer("verify", bent, code=7)
    assert not told["whole"]
    assert told["why"]


def test_a_copy_for_strangers_is_told_with_its_map(bundle: Path, tmp_path: Path) -> None:
    told = answer("redact", bundle, "-o", tmp_path / "copy.tar.zst")
    assert Path(told["bundle"]) == tmp_path / "copy.tar.zst"
    assert Path(told["map"]).is_file()
    assert (told["same"], told["size"]) == (True, (tmp_path / "copy.tar.zst").stat().st_size)


def test_what_a_limit_left_out_is_told_with_what_it_is_of() -> None:
    found = diagnose(gather_facts(open_bundle(stored.CASES[0].bundle)))
    beyond = Unproven(
        signature=UNKNOWN, text="there are more throttle groups than are told", missing="8 were not asked"
    )
    told = json.loads(verdict_json(msgspec.structs.replace(found, cannot_tell=(beyond,))))
    assert told["cannot_tell"] == [
        {"signature": "unknown", "missing": "there are more throttle groups than are told: 8 were not asked"}
    ]


def test_a_replay_tells_each_case_and_what_has_changed(tmp_path: Path) -> None:
    home = stored.CASES[0].bundle.parent
    told = answer("replay", home)
    assert told["passed"]
    assert [case["passed"] for case in told["cases"]] == [True]
    changed = tmp_path / "case"
    changed.mkdir()
    shutil.copy(stored.CASES[0].bundle, changed / stored.CASES[0].bundle.name)
    expected = json.loads((home / "expected.json").read_text())
    (changed / "expected.json").write_text(json.dumps(expected | {"where": "guest"}))
    told = answer("replay", changed, code=7)
    assert not told["passed"]
    (case,) = told["cases"]
    assert {"what": "where", "old": "guest", "new": expected["where"]} in case["changes"], case


def test_diff_leaves_with_a_code_where_that_is_asked_for(bundle: Path) -> None:
    words = [sys.executable, "-m", "autopsy", "diff", "--exit-code"]
    same = subprocess.run([*words, bundle, bundle], capture_output=True, text=True, check=False, timeout=60)
    assert same.returncode == 0, same.stdout
    other = subprocess.run(
        [*words, bundle, stored.CASES[0].bundle], capture_output=True, text=True, check=False, timeout=60
    )
    assert other.returncode == 7
