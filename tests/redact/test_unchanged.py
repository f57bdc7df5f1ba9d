"""A file that is told at a glance to have nothing to be hidden has nothing to be hidden."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopsy.bundle import layout
from autopsy.bundle.sections import Section, render
from autopsy.redact import files, unchanged
from autopsy.redact.pseudonyms import Pseudonyms
from redact.test_pieces import TEXTS, WORDS

PLACE = layout.evidence(layout.WITNESS, layout.TASKS)
JSON = layout.evidence(layout.GDB_THREADS, layout.THREADS)
KEYS = st.sampled_from(("state", "path", "user", "host", "data", "qom-type", "password", "frames", "a/b", "web-secret"))
VALUES = st.recursive(
    st.none() | st.integers(0, 9) | st.sampled_from(("", "secret", "json:{}", "/usr/lib/x", *WORDS)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_json_that_is_said_to_be_plain_is_what_the_long_way_makes_of_it(value: object) -> None:
    data = msgspec.json.encode(value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unchanged, "LARGE", 0)
        plain = unchanged.json_is_plain(data, Pseudonyms(), files.JSON_KEPT)
        patch.setattr(files, "json_is_plain", lambda *_: False)
        long_way = files.redacted(JSON, data, Pseudonyms(), lambda _: True)
    assert not plain or long_way == data


def test_the_quick_look_at_json_tells_plain_from_private() -> None:
    frames = [{"pc": number, "function": "ppoll", "module": "/usr/lib/libc.so.6"} for number in range(2000)]
    data = msgspec.json.encode([{"tid": 1, "comm": "CPU 0/KVM", "frames": frames}])
    assert unchanged.json_is_plain(data, Pseudonyms(), files.JSON_KEPT)
    private = data.replace(b"/usr/lib/libc.so.6", b"/srv/alice/disk.raw", 1)
    assert not unchanged.json_is_plain(private, Pseudonyms(), files.JSON_KEPT)
    assert b"alice" not in files.redacted(JSON, private, Pseudonyms(), lambda _: True)
    object_of_qemu = msgspec.json.encode({"qom-type": "secret", "data": "0" * unchanged.LARGE})
    assert not unchanged.json_is_plain(object_of_qemu, Pseudonyms(), files.JSON_KEPT)


@given(st.lists(st.tuples(st.sampled_from(("stat", "status", "comm", "fd/3", "cgroup", "stack")), TEXTS), max_size=5))
def test_threads_that_are_said_to_be_plain_are_what_the_long_way_makes_of_them(found: list[tuple[str, str]]) -> None:
    data = render(
        Section(f"task/{number}/{kind}" if number else kind, text.encode()) for number, (kind, text) in enumerate(found)
    )
    quick = files.redacted(PLACE, data, Pseudonyms(), lambda _: True)
    with pytest.MonkeyPatch.context() as patch:
        # It is looked at all the same: whoever is met first has the first number.
        patch.setattr(
            files, "tasks_are_plain", lambda sections, hide: unchanged.tasks_are_plain(sections, hide) and False
        )
        assert files.redacted(PLACE, data, Pseudonyms(), lambda _: True) == quick


@given(TEXTS, st.lists(st.sampled_from(("web", "Alice", "db.corp", "key", "to\u212aen", "plain")), max_size=3))
def test_a_file_in_which_no_name_is_said_to_stand_keeps_all_that_it_has(text: str, names: list[str]) -> None:
    hide = Pseudonyms()
    for name in names:
        hide.name("vm", name)
    hide.learned()
    if not hide.names_stand_in(text.encode()):
        assert hide._known_by_name(text) == text


def test_a_name_that_stands_by_itself_is_seen_and_a_part_of_a_word_is_not() -> None:
    hide = Pseudonyms()
    hide.name("vm", "web")
    hide.learned()
    assert hide.names_stand_in(b"cobweb, WEB-1")
    assert not hide.names_stand_in(b"cobweb, webbed, 3web4")
