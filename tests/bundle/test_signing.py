"""Who sealed it: a signature by ssh-keygen, beside the bundle."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from autopsy.bundle.seal import Sealed, seal
from autopsy.bundle.verify import verify
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
def bundle(tmp_path: Path) -> Sealed:
    return seal(staged(tmp_path / "staging"), tmp_path / "a.tar.zst", MANIFEST)


def who_signed(bundle: Path, allowed: Path) -> str:
    return signer(bundle, allowed, verify(bundle).sha256)


def test_a_signed_bundle_names_its_signer(bundle: Sealed, tmp_path: Path) -> None:
    ours = key(tmp_path / "ours")
    sign(bundle, ours)
    assert who_signed(bundle.path, allowing(tmp_path / "allowed", ours)) == "operator@example.org"


def test_a_signature_is_not_written_through_a_link_that_lies_beside_the_bundle(bundle: Sealed, tmp_path: Path) -> None:
    ours, precious = key(tmp_path / "ours"), tmp_path / "precious"
    precious.write_text("root's own")
    signature_path(bundle.path).symlink_to(precious)
    sign(bundle, ours)
    assert precious.read_text() == "root's own"
    assert not signature_path(bundle.path).is_symlink()
    assert who_signed(bundle.path, allowing(tmp_path / "allowed", ours)) == "operator@example.org"


def test_another_s_signature_none_at_all_and_a_changed_bundle_are_refused(bundle: Sealed, tmp_path: Path) -> None:
    ours, theirs = key(tmp_path / "ours"), key(tmp_path / "theirs")
    allowed = allowing(tmp_path / "allowed", ours)
    with pytest.raises(DamagedBundle, match="is not signed"):
        who_signed(bundle.path, allowed)
    signature_path(bundle.path).symlink_to("/etc/shadow")
    with pytest.raises(DamagedBundle, match="is not signed"):
        who_signed(bundle.path, allowed)
    sign(bundle, theirs)
    with pytest.raises(DamagedBundle, match="no allowed signer"):
        who_signed(bundle.path, allowed)
    sign(bundle, ours)
    data = bytearray(bundle.path.read_bytes())
    data[len(data) // 2] ^= 1
    bundle.path.write_bytes(data)
    with pytest.raises(DamagedBundle, match="no allowed signer"):
        signer(bundle.path, allowed, hashlib.sha256(data).hexdigest())
    with pytest.raises(DamagedBundle, match="changed while it was verified"):
        signer(bundle.path, allowed, bundle.sha256)


def test_what_the_owner_of_the_folder_lays_in_its_place_is_not_signed_with_our_key(
    bundle: Sealed, tmp_path: Path
) -> None:
    ours = key(tmp_path / "ours")
    other = tmp_path / "other"
    other.write_bytes(b"a stranger's")
    bundle.path.unlink()
    for lay in (other.rename, bundle.path.symlink_to):
        (tmp_path / "other").write_bytes(b"a stranger's")
        lay(bundle.path if lay == other.rename else other)
        with pytest.raises(DamagedBundle, match="is not what was sealed there"):
            sign(bundle, ours)
        bundle.path.unlink()
    assert not signature_path(bundle.path).exists()


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
    assert who_signed(done.bundle, allowing(tmp_path / "allowed", ours)) == "operator@example.org"
