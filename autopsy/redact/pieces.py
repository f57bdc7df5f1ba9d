"""Cuts a text into pieces that no pattern of a secret or a name reaches across: most of them stand many times over."""

from __future__ import annotations

from collections.abc import Iterator

from autopsy.redact.secrets import SCHEMES, STEMS, holds, small

# What begins a secret of several lines: such a text is one piece.
WHOLE = ("-----begin ", '"data"', "<secret", "<passwd", "<password", "<passphrase", "<token", "<cookie")
# Keys whose value may stand on a later line, with the sign between them on a line of its own: patterns.IDENTITY_WORD,
# secrets.NAMES, secrets.WORD, secrets.SCHEME.
IDENTITIES = (
    *("user", "login", "host", "serial", "wwn", "export", "pool", "image", "volume", "share", "initiator-name"),
    *("guest", "acct"),
)
KEYS = (*IDENTITIES, *STEMS, *SCHEMES, "digest")
REACH = 3  # lines with anything on them: the sign, the scheme, the value


def has_keys(text: str) -> bool:
    """Return whether a line of the text may be no piece by itself."""
    letters = small(text)
    return holds(letters, WHOLE) or holds(letters, KEYS)


def pieces(text: str) -> Iterator[str]:
    r"""Yield the pieces of a text: joined by "\n" they are the text."""
    letters = small(text)
    if "\n" not in text or holds(letters, WHOLE):
        yield text
        return
    if not holds(letters, KEYS):
        yield from text.split("\n")
        return
    glued: list[str] = []
    reach = 0
    for line in text.split("\n"):
        if holds(small(line), KEYS):
            reach = REACH
        elif reach and line.strip():
            reach -= 1
        elif not reach:
            yield line
            continue
        glued.append(line)
        if not reach:
            yield "\n".join(glued)
            glued = []
    if glued:
        yield "\n".join(glued)
