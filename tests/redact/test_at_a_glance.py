"""What is told of a large file at a glance is what the long way makes of it."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopsy.bundle import layout
from autopsy.bundle.sections import HEADER, Section, parse, render
from autopsy.redact import files, json_pairs, json_values, patterns, pieces, runs
from autopsy.redact.json_pairs import by_pairs
from autopsy.redact.json_values import JSON_KEPT
from autopsy.redact.pseudonyms import Pseudonyms
from redact.test_pieces import TEXTS, WORDS

TASKS = layout.evidence(layout.WITNESS, layout.TASKS)
FDS = layout.evidence(layout.PROC_FDS, layout.FDS)
MAPS = layout.evidence(layout.WITNESS, layout.MAPS)
JSON = layout.evidence(layout.GDB_THREADS, layout.THREADS)
KEYS = st.sampled_from(("state", "path", "user", "host", "data", "qom-type", "password", "frames", "a/b", "web-secret"))
VALUES = st.recursive(
    st.none() | st.integers(0, 9) | st.sampled_from(("", "secret", "json:{}", "a{b", "}", "/usr/lib/x", *WORDS)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
NAMELESS = "7f6e2d840000-7f6e2d940000 rw-p 00000000 00:00 0 "
TEXTS_OF_MAPS = ("password:\nhunter2hunter2", f"{NAMELESS}[anon: password=hunter2]", "/home/alice")
LINKS = ("anon_inode:[eventfd]", "socket:[4711]", "pipe:[12]\n", "/srv/alice/my disk.raw", "anon_inode:[x] /srv/a/b")


def everything(_: str) -> bool:
    return True


@given(VALUES)
def test_large_json_becomes_what_the_long_way_makes_of_it(value: object) -> None:
    data = msgspec.json.encode(value)
    quick, slow = Pseudonyms(), Pseudonyms()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_pairs, "LARGE", 0)
        large = by_pairs(data, quick, JSON_KEPT)
    long_way = json_values.redacted_line(data, slow)
    if large is not None:
        assert msgspec.json.decode(large.made) == msgspec.json.decode(long_way)
        assert (large.made == data) == (msgspec.json.decode(long_way) == msgspec.json.decode(data))
        assert quick.known == slow.known


def test_the_quick_look_at_json_tells_plain_from_private() -> None:
    frames = [{"pc": number, "function": "ppoll", "module": "/usr/lib/libc.so.6"} for number in range(2000)]
    data = msgspec.json.encode([{"tid": 1, "comm": "CPU 0/KVM", "frames": frames}])
    plain = by_pairs(data, Pseudonyms(), JSON_KEPT)
    assert plain is not None
    assert plain.made == data
    assert {"/usr/lib/libc.so.6", "CPU 0/KVM"} <= set(plain.texts.split("\n"))
    private = by_pairs(data.replace(b"/usr/lib/libc.so.6", b"/srv/alice/disk.raw", 7), Pseudonyms(), JSON_KEPT)
    assert private is not None
    assert b"alice" not in private.made
    assert len(msgspec.json.decode(private.made)[0]["frames"]) == 2000
    object_of_qemu = msgspec.json.encode({"qom-type": "secret", "data": "0" * json_pairs.LARGE})
    assert by_pairs(object_of_qemu, Pseudonyms(), JSON_KEPT) is None
    assert b"00" not in files.redacted(JSON, object_of_qemu, Pseudonyms(), everything)


@given(TEXTS)
def test_a_line_that_is_said_to_be_usual_has_nothing_to_be_hidden(text: str) -> None:
    for line in text.split("\n"):
        if not pieces.has_keys(line) and not patterns.UNUSUAL.search(line):
            assert Pseudonyms().text(line) == line


@given(st.lists(TEXTS.map(lambda text: text.replace("\n", " ")) | st.text("0159./@:- aZ", max_size=34), max_size=5))
def test_a_line_is_as_unusual_with_any_other_digits(lines: list[str]) -> None:
    assert patterns.unusual(lines) == [line for line in lines if patterns.UNUSUAL.search(line)]


SECTIONS = st.tuples(
    st.sampled_from(("stat", "status", "comm", "fd/3", "fdinfo/3", "cgroup", "stack")), TEXTS | st.sampled_from(LINKS)
)


@given(st.lists(SECTIONS, max_size=5), st.sampled_from((TASKS, FDS)))
def test_sections_in_runs_become_what_each_becomes_alone(found: list[tuple[str, str]], place: str) -> None:
    data = render(
        Section(f"task/{number}/{kind}" if number and "/" not in kind else kind, text.encode())
        for number, (kind, text) in enumerate(found)
    )
    quick, slow = Pseudonyms(), Pseudonyms()
    made = files.redacted(place, data, quick, everything)
    parts = runs.cut(data, files.MANY[place.rpartition("/")[2]])
    assert parts is not None
    assert b"".join(part.data for part in parts) == data
    # The lines are looked at all the same: whoever is met first has the first number.
    lines = files._distinct_lines(parts)
    assert lines is not None
    slow.is_plain(lines)
    single = runs.cut(data, None)
    assert single is not None
    assert files._sections(place.rpartition("/")[2], single, slow, everything, runs_are_plain=False) == made


@given(st.binary(max_size=40), st.lists(SECTIONS, max_size=3))
def test_what_is_not_whole_sections_is_not_cut(torn: bytes, found: list[tuple[str, str]]) -> None:
    data = render(Section(f"task/7/{kind}", text.encode()) for kind, text in found) + torn
    parts = runs.cut(data, runs.THREADS)
    assert (parts is None) == (render(parse(data)) != data)


def test_the_sections_of_two_thousand_threads_are_one_run() -> None:
    kinds = ("stat", "status", "syscall", "wchan", "stack", "schedstat", "comm")
    data = render(Section(f"task/{tid}/{kind}", b"x\n") for tid in range(2000) for kind in kinds)
    data += b"==> task/9/stack (unreadable: EACCES) <==\n"
    assert runs.cut(data, runs.THREADS) == (runs.ManySections(data, (*(b"x\n",) * 12_000, b"")),)
    assert HEADER.match(data)


@given(st.lists(st.sampled_from((NAMELESS, f"{NAMELESS}/srv/alice/my disk.raw", *TEXTS_OF_MAPS)), max_size=6))
def test_a_map_of_memory_becomes_what_all_its_lines_become(lines: list[str]) -> None:
    data = "\n".join(lines).encode()
    made = files.redacted(MAPS, data, Pseudonyms(), everything)
    assert made.count(b"\n") == data.count(b"\n")
    assert b"alice" not in made
    assert b"hunter2" not in made
    assert made.count(NAMELESS.encode()) == data.count(NAMELESS.encode())


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


@given(st.lists(SECTIONS, max_size=4), st.lists(st.sampled_from(("web", "Alice", "eventfd", "plain")), max_size=2))
def test_the_second_look_at_a_file_makes_of_it_what_a_whole_one_makes(
    found: list[tuple[str, str]], names: list[str]
) -> None:
    contents = {
        TASKS: render(Section(f"task/7/{kind}", text.encode()) for kind, text in found),
        FDS: render(Section(kind, text.encode()) for kind, text in found),
        JSON: msgspec.json.encode([{"frames": kind, "path": text} for kind, text in found]),
        MAPS: "\n".join(text for _, text in found).encode(),
    }
    quick, slow = Pseudonyms(), Pseudonyms()
    looked = {name: files.look(name, data, quick, everything) for name, data in contents.items()}
    for name, data in contents.items():
        files.redacted(name, data, slow, everything)
    for hide in (quick, slow):
        for vm in names:
            hide.name("vm", vm)
        hide.learned()
    for name, data in contents.items():
        assert files.look_again(name, looked[name], quick, everything) == files.redacted(name, data, slow, everything)


def test_a_line_that_was_plain_is_looked_at_again_once_all_names_are_known() -> None:
    hide = Pseudonyms()
    assert hide.is_plain("Name:\tweb1")
    hide.name("vm", "web1")
    hide.learned()
    assert not hide.is_plain("Name:\tweb1")


@pytest.mark.parametrize(
    "odd",
    [b"==> stack (007 bytes) <==\nabcdefg\n", b"==> stack (unreadable: \xff) <==\n", b"==> stack (9 bytes) <==\nab\n"],
    ids=["a length with zeros", "an error that is no text", "cut short"],
)
def test_a_section_that_we_would_not_write_like_that_is_taken_for_text(odd: bytes) -> None:
    plain = b"==> task/7/stat (2 bytes) <==\nx\n"
    assert runs.cut(plain + odd, runs.THREADS) is None


def test_a_brace_within_a_text_does_not_part_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_pairs, "LARGE", 0)
    data = msgspec.json.encode([{"path": "p{q"}, {"path": "p{q", "user": "alice9"}])
    large = by_pairs(data, Pseudonyms(), JSON_KEPT)
    assert large is not None
    assert msgspec.json.decode(large.made)[1] == {"path": "p{q", "user": "user-1"}
