"""Signs a sealed bundle with an SSH key, and checks who signed one (ssh-keygen -Y)."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from autopsy.bundle.archive import MOST_BYTES, open_archive
from autopsy.bundle.seal import Sealed
from autopsy.errors import DamagedBundle, UsageError
from autopsy.files import private
from autopsy.files.plain import NotPlain
from autopsy.files.scratch_place import scratch_place
from autopsy.linux import environment
from autopsy.linux.confine.sandbox import stay
from autopsy.linux.files import read_plain

NAMESPACE = "autopsy"
SECONDS = 20.0
MOST_SIGNATURE = 64 << 10
ACCOUNTS = (Path("/etc/passwd"), Path("/etc/nsswitch.conf"))  # ssh-keygen wants to know who it is
AGENT = "SSH_AUTH_SOCK"  # of the caller's environment: where the key may be


def signature_path(bundle: Path) -> Path:
    """Return where a bundle's signature stands: beside it."""
    return bundle.with_name(f"{bundle.name}.sig")


def sign(sealed: Sealed, key: Path) -> Path:
    """Store a signature beside the bundle and return its path; nothing is signed but what was sealed.

    Raises:
        UsageError: the key cannot sign; ssh-keygen's own words are in the message.
        DamagedBundle: something else lies there by now.
    """
    with tempfile.TemporaryDirectory(prefix="autopsy-", dir=scratch_place()) as folder:
        content, digest = _copied(sealed.path, Path(folder))
        if digest != sealed.sha256:
            remedy = "seal into a folder that nobody else owns"
            raise DamagedBundle(str(sealed.path), "is not what was sealed there", remedy=remedy)
        with open(content, "rb") as stream:
            signed = _run("-Y", "sign", "-q", "-f", str(key), "-n", NAMESPACE, what=str(key), stdin=stream.fileno())
    place = signature_path(sealed.path)
    private.publish(place, signed.encode())  # ssh-keygen itself would write through anybody's link
    return place


def _copied(bundle: Path, folder: Path) -> tuple[Path, str]:
    """Copy a bundle to where nobody else can change it while it is read; return the copy and its digest.

    What is larger than any bundle is copied in part.
    """
    content, digest, left = folder / "content", hashlib.sha256(), MOST_BYTES
    with open(open_archive(bundle), "rb") as source, private.new(content) as stream:
        while left > 0 and (part := source.read(1 << 20)):
            digest.update(part)
            stream.write(part)
            left -= len(part)
    return content, digest.hexdigest()


def can_sign(key: Path) -> None:
    """Sign nothing, so that a key that asks for a passphrase is known before anything is captured.

    Raises:
        UsageError: the key cannot sign.
    """
    _run("-Y", "sign", "-q", "-f", str(key), "-n", NAMESPACE, what=str(key))


def signer(bundle: Path, allowed: Path, sha256: str) -> str:
    """Return who signed the bundle of this digest, by the names in a file of allowed signers (see ssh-keygen(1)).

    ssh-keygen reads a stranger's signature, and can do nothing else.

    Raises:
        DamagedBundle: it is not signed, not by any of them, or not as it is now.
    """
    signature = signature_path(bundle)
    try:
        data = read_plain(signature, MOST_SIGNATURE)
    except (OSError, NotPlain) as error:
        raise DamagedBundle(str(bundle), "is not signed", remedy=f"{signature.name} belongs beside it") from error
    try:
        with tempfile.TemporaryDirectory(prefix="autopsy-", dir=scratch_place()) as folder:
            names = _names(bundle, allowed, data, Path(folder), sha256)
    except UsageError as error:
        raise _unsigned(bundle, f"no allowed signer signed this file ({error.cause})") from error
    return names[0]


def _names(bundle: Path, allowed: Path, signature: bytes, folder: Path, sha256: str) -> list[str]:
    """Return by which names the signer is allowed, of copies that nobody else can change while they are read."""
    copy = folder / "sig"
    private.store(copy, signature)
    content, digest = _copied(bundle, folder)
    if digest != sha256:
        raise _unsigned(bundle, "it has changed while it was verified")
    words = ("-s", str(copy), "-f", str(allowed))
    inside = partial(stay, (folder, allowed, *ACCOUNTS))
    names = _run("-Y", "find-principals", *words, what=str(bundle), inside=inside).split()
    who = ("-I", names[0] if names else "", "-n", NAMESPACE)
    with open(content, "rb") as stream:
        _run("-Y", "verify", *words, *who, what=str(bundle), stdin=stream.fileno(), inside=inside)
    return names


def _unsigned(bundle: Path, why: str) -> DamagedBundle:
    return DamagedBundle(str(bundle), why, remedy="do not rest a verdict on it")


def _run(*arguments: str, what: str, stdin: int = subprocess.DEVNULL, inside: Callable[[], None] | None = None) -> str:
    agent = {name: os.environ[name] for name in (AGENT,) if name in os.environ}
    try:
        done = subprocess.run(
            ["ssh-keygen", *arguments],
            stdin=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=SECONDS,
            env=environment.ours(SSH_ASKPASS_REQUIRE="never", LC_ALL="C", **agent),
            start_new_session=True,  # without a terminal nobody can be asked for a passphrase
            preexec_fn=inside,
        )
    except FileNotFoundError as error:
        raise UsageError("ssh-keygen", "is not installed", remedy="apt install openssh-client") from error
    except subprocess.TimeoutExpired as error:
        raise UsageError(what, f"ssh-keygen took over {SECONDS:.0f} s", remedy="is the key's agent stuck?") from error
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip() or f"exit {done.returncode}").splitlines()[-1]
        raise UsageError(
            what, f"ssh-keygen: {words}", remedy="give a private key without a passphrase, or one in an agent"
        )
    return done.stdout
