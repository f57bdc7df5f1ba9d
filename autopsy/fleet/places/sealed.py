"""Encrypts a bundle to whoever may read it, and decrypts it there (age)."""

from __future__ import annotations

from pathlib import Path

from autopsy.errors import AutopsyError, ExitCode, UsageError
from autopsy.files import private
from autopsy.files.plain import NotPlain, open_plain

ENDING = ".age"
COMMENT = "#"


class NotDecrypted(AutopsyError):
    """It is encrypted to somebody else, or damaged."""

    exit_code = ExitCode.MISMATCH


def encrypt(source: Path, destination: Path, recipients: tuple[str, ...]) -> None:
    """Write a new file that these recipients alone can read: age's X25519 keys, or SSH's.

    Raises:
        UsageError: one of them is no recipient.
    """
    import pyrage  # noqa: PLC0415 - only what is encrypted needs it

    keys = [_recipient(recipient) for recipient in recipients]
    with open(open_plain(source), "rb") as stream, private.new(destination) as out:
        pyrage.encrypt_io(stream, out, keys)


def check_recipients(recipients: tuple[str, ...]) -> None:
    """Say at once where one of them is none.

    Raises:
        UsageError: it is none.
    """
    for recipient in recipients:
        _recipient(recipient)


def decrypt(source: Path, destination: Path, identity: Path) -> None:
    """Write a new file that anybody can read who reads our files.

    Raises:
        UsageError: the identity is none.
        NotDecrypted: it cannot be decrypted by that.
    """
    import pyrage  # noqa: PLC0415 - likewise

    keys = _identities(identity)
    try:
        with open(open_plain(source), "rb") as stream, private.new(destination) as out:
            pyrage.decrypt_io(stream, out, keys)
    except pyrage.DecryptError as error:
        raise NotDecrypted(
            str(source), f"it cannot be decrypted: {error}", remedy="give the identity of its recipient"
        ) from error


def _recipient(word: str) -> object:
    import pyrage  # noqa: PLC0415 - likewise

    kind = pyrage.ssh.Recipient if word.startswith("ssh-") else pyrage.x25519.Recipient
    try:
        return kind.from_str(word)
    except pyrage.RecipientError as error:
        raise UsageError(word, f"is no recipient: {error}", remedy="give age1…, or an SSH public key") from error


def _identities(file: Path) -> list[object]:
    import pyrage  # noqa: PLC0415 - likewise

    remedy = "give a file that age-keygen made, or an SSH private key without a passphrase"
    try:
        with open(open_plain(file), "rb") as stream:
            data = stream.read(1 << 20)
        if b"PRIVATE KEY" in data:
            return [pyrage.ssh.Identity.from_buffer(data)]
        lines = (line.strip() for line in data.decode("ascii", "replace").splitlines())
        return [pyrage.x25519.Identity.from_str(line) for line in lines if line and not line.startswith(COMMENT)]
    except (OSError, NotPlain, pyrage.IdentityError) as error:
        raise UsageError(str(file), f"is no identity: {error}", remedy=remedy) from error
