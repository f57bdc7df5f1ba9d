"""Who sealed it: a signature by ssh-keygen, beside the bundle."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from autopsy.bundle.seal import seal
from autopsy.commands.signing import can_sign, sign, signature_path, signer
from autopsy.errors import DamagedBundle, UsageError
from support import lab
from support.surviving import _every_capture_ends, busy, capture  # noqa: F401 - a fixture
from tests.bundle.test_bundle import MANIFEST, staged

if shutil.which("ssh-keygen") is None:
    pytest.skip("ssh-keygen is not installed", allow_module_level=True)


def key(path: Path, passphrase: str = "") -> Path:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", "operator", "-f", path], check=True, timeout=60
    )
    return path


def allowing(path: Path, *keys: Path) -> Path:
    path.write_text("".join(f"operator@example.org {each.with_suffix('.pub').read_text()}" for each in keys))
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return seal(staged(tmp_path / "staging"), tmp_path / "a.tar.zst", MANIFEST).path


def test_a_signed_bundle_names_its_signer(bundle: Path, tmp_path: Path) -> None:
    ours = key(tmp_path / "ours")
    sign(bundle, ours)
    assert signer(bundle, allowing(tmp_path / "allowed", ours)) == "operator@example.org"


def test_a_signature_is_not_written_through_a_link_that_lies_beside_the_bundle(bundle: Path, tmp_path: Path) -> None:
    ours, precious = key(tmp_path / "ours"), tmp_path / "precious"
    precious.write_text("root's own")
    signature_path(bundle).symlink_to(precious)
    sign(bundle, ours)
    assert precious.read_text() == "root's own"
    assert not signature_path(bundle).is_symlink()
    assert signer(bundle, allowing(tmp_path / "allowed", ours)) == "operator@example.org"


def test_another_s_signature_none_at_all_and_a_changed_bundle_are_refused(bundle: Path, tmp_path: Path) -> None:
    ours, theirs = key(tmp_path / "ours"), key(tmp_path / "theirs")
    allowed = allowing(tmp_path / "allowed", ours)
    with pytest.raises(DamagedBundle, match="is not signed"):
        signer(bundle, allowed)
    sign(bundle, theirs)
    with pytest.raises(DamagedBundle, match="no allowed signer"):
        signer(bundle, allowed)
    sign(bundle, ours)
    data = bytearray(bundle.read_bytes())
    data[len(data) // 2] ^= 1
    bundle.write_bytes(data)
    with pytest.raises(DamagedBundle, match="no allowed signer"):
        signer(bundle, allowed)


def test_a_key_that_asks_for_a_passphrase_is_known_before_anything_is_captured(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="ssh-keygen"):
        can_sign(key(tmp_path / "locked", "secret words"))
    with pytest.raises(UsageError):
        can_sign(tmp_path / "nothing")
    can_sign(key(tmp_path / "ours"))


@pytest.mark.live
def test_a_capture_signs_what_it_seals(tmp_path: Path) -> None:
    lab.need_root()
    ours = key(tmp_path / "ours")
    with busy("signed") as machine:
        done = capture(machine.pid, tmp_path, "--fast", "--sign", str(ours))
        assert done.end() == 0, done.story
    assert signature_path(done.bundle).is_file()
    assert signer(done.bundle, allowing(tmp_path / "allowed", ours)) == "operator@example.org"
