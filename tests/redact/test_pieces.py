"""Redaction looks at a piece of a text at a time, and not for what cannot be in it: the result is that of the whole."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopsy.redact import patterns, pieces, pseudonyms, secrets
from autopsy.redact.pseudonyms import Pseudonyms

WORDS = (
    *("password", "host", "of user", "--psk", "secret", "Bearer", "Basic", '"data"', "-----BEGIN X-----", "apiKey"),
    *("-----END X-----", "<secret>", "</secret>", "http://", "alice:pw@", "alice@example.com", "/srv/vm/disk.qcow2"),
    *(":", "=", " ", "\n", "\n\n", '"', "'", "hunter2hunter2", "10.1.2.3", "fe80::1:2", "02:13:4f:aa:bb:cc", "is"),
    *("iqn.2001-05.com.x:y", "ssh-rsa AAAA", "ghp_0123456789abcdef", "PA\u017f\u017fWORD", "to\u212aen", "db.corp"),
    *("550e8400-e29b-41d4-a716-446655440000", "0123456789abcdef0123456789abcdef", "AbCdEf0123456789AbCdEf", "nas:/x"),
    *("//nas/share", "naa.5000c500a1b2c3d4", "50:00:c5:00:a1:b2:c3:d4", "key", "image", "plain", "0x5000c500a1b2c3d4"),
)
TEXTS = st.lists(st.sampled_from(WORDS), max_size=14).map("".join)


def plainly(text: str, *, twice: bool) -> str:
    """Return what every pattern makes of the whole text, whatever is in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pseudonyms, "pieces", lambda whole: [whole])
        patch.setattr(pseudonyms, "has_keys", lambda _: True)
        patch.setattr(secrets, "holds", lambda *_: True)
        hide = Pseudonyms()
        made = hide.text(text)
        if twice:
            hide.learned()
            hide._unchanged = frozenset()
            made = hide.text(text)
        return made


def quickly(text: str, *, twice: bool) -> str:
    hide = Pseudonyms()
    made = hide.text(text)
    if twice:
        hide.learned()
        made = hide.text(text)
    return made


@given(TEXTS)
def test_what_is_left_out_by_pieces_is_what_is_left_out_of_the_whole(text: str) -> None:
    for twice in (False, True):
        assert quickly(text, twice=twice) == plainly(text, twice=twice)


@given(TEXTS)
def test_the_pieces_are_the_text(text: str) -> None:
    assert "\n".join(pieces.pieces(text)) == text


@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join))
def test_no_pattern_finds_anything_without_its_hint(text: str) -> None:
    letters = secrets.small(text)
    for hints, found in (
        (secrets.STEMS, (secrets.WORD, secrets.LINE, secrets.DATA, secrets.ELEMENT)),
        (secrets.SCHEMES, (secrets.SCHEME,)),
        (secrets.OF_IQN, (secrets.IQN,)),
        (pieces.IDENTITIES, (patterns.IDENTITY_WORD,)),
    ):
        if not secrets.holds(letters, hints):
            assert not any(pattern.search(text) for pattern in found)
    if not secrets.holds(text, secrets.MARKS):
        assert not secrets.MARKED.search(text)


@pytest.mark.parametrize("name", [each for each in re.split(r"[|()?:]+", secrets.NAMES) if len(each) > 6])
def test_every_name_of_a_secret_has_one_of_the_stems(name: str) -> None:
    plain = name.replace("[-_]", "_")
    if secrets.KEY.search(plain):
        assert secrets.holds(plain, secrets.STEMS)


def test_a_text_is_gone_through_once_however_often_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(pseudonyms, "without_secrets", lambda text, **_: seen.append(text) or text)
    hide = Pseudonyms()
    stack = "#0 0x7f in ppoll () from /lib/libc.so.6\n#1 0x55 in main_loop_wait ()"
    for _ in range(100):
        hide.text(stack)
    assert sorted(seen) == sorted(stack.split("\n"))
