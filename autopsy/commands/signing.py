"""Signs a sealed bundle with an SSH key, and checks who signed one (ssh-keygen -Y)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from autopsy.errors import DamagedBundle, UsageError
from autopsy.files import private
from autopsy.linux import environment

NAMESPACE = "autopsy"
SECONDS = 20.0
AGENT = "SSH_AUTH_SOCK"  # of the caller's environment: where the key may be


def signature_path(bundle: Path) -> Path:
    """Return where a bundle's signature stands: beside it."""
    return bundle.with_name(f"{bundle.name}.sig")


def sign(bundle: Path, key: Path) -> Path:
    """Store a signature beside the bundle and return its path.

    Raises:
        UsageError: the key cannot sign; ssh-keygen's own words are in the message.
    """
    with open(bundle, "rb") as content:
        signed = _run("-Y", "sign", "-q", "-f", str(key), "-n", NAMESPACE, thing=str(key), stdin=content.fileno())
    private.publish(signature_path(bundle), signed.encode())  # ssh-keygen itself would write through anybody's link
    return signature_path(bundle)


def can_sign(key: Path) -> None:
    """Sign nothing, so that a key that asks for a passphrase is known before anything is captured.

    Raises:
        UsageError: the key cannot sign.
    """
    _run("-Y", "sign", "-q", "-f", str(key), "-n", NAMESPACE, thing=str(key))


def signer(bundle: Path, allowed: Path) -> str:
    """Return who signed the bundle, by the names in a file of allowed signers (see ssh-keygen(1)).

    Raises:
        DamagedBundle: it is not signed, not by any of them, or not as it is now.
    """
    signature = signature_path(bundle)
    if not signature.is_file():
        raise DamagedBundle(str(bundle), "is not signed", remedy=f"{signature.name} belongs beside it")
    try:
        names = _run("-Y", "find-principals", "-s", str(signature), "-f", str(allowed), thing=str(bundle)).split()
        with open(bundle, "rb") as content:
            who = ("-I", names[0] if names else "", "-n", NAMESPACE, "-s", str(signature))
            _run("-Y", "verify", "-f", str(allowed), *who, thing=str(bundle), stdin=content.fileno())
    except UsageError as error:
        raise DamagedBundle(
            str(bundle),
            f"no allowed signer signed this file ({error.cause})",
            remedy="do not rest a verdict on it",
        ) from error
    return names[0]


def _run(*arguments: str, thing: str, stdin: int = subprocess.DEVNULL) -> str:
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
        )
    except FileNotFoundError as error:
        raise UsageError("ssh-keygen", "is not installed", remedy="apt install openssh-client") from error
    except subprocess.TimeoutExpired as error:
        raise UsageError(thing, f"ssh-keygen took over {SECONDS:.0f} s", remedy="is the key's agent stuck?") from error
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip() or f"exit {done.returncode}").splitlines()[-1]
        raise UsageError(
            thing, f"ssh-keygen: {words}", remedy="give a private key without a passphrase, or one in an agent"
        )
    return done.stdout
