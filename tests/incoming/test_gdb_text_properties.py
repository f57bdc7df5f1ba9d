"""No text breaks the scanner, and what it has read once it reads again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from autopsy.bundle.records import Coroutine, Frame, ThreadStack
from autopsy.incoming.stacks.gdb_text import scan
from autopsy.incoming.stacks.pasted import PastedDump
from autopsy.incoming.stacks.render import render

letters = st.sampled_from("abcdefghijklmnopqrstuvwxyz_")
function = st.text(letters, min_size=1, max_size=30).map(lambda name: f"f_{name}")
path = st.text(st.sampled_from("abc/._-0123456789"), min_size=1, max_size=30).map(lambda name: f"../{name}x.c")
address = st.integers(1, (1 << 64) - 1)


@st.composite
def frame(draw: st.DrawFn) -> Frame:
    pc = draw(address)
    name = draw(st.one_of(function, st.just("")))
    match draw(st.integers(0, 3)):
        case 0:
            return Frame(pc=pc, function=name, file=draw(path), line=draw(st.integers(1, 99999)))
        case 1:
            return Frame(pc=pc, function=name, module=draw(path))
        case 2:
            return Frame(pc=pc, function=name, module=draw(path), offset=draw(st.integers(1, 1 << 40)))
        case _:
            return Frame(pc=pc, function=name)


stacks = st.lists(frame(), min_size=1, max_size=40).map(tuple)
comms = st.text(st.sampled_from("abcCPU 0/KVM()[]."), max_size=15).map(str.strip)


@st.composite
def look(draw: st.DrawFn) -> PastedDump:
    tids = draw(st.lists(st.integers(1, 1 << 22), unique=True, max_size=8))
    addresses = draw(st.lists(st.integers(0x10000, (1 << 47) - 1), unique=True, max_size=4))
    return PastedDump(
        threads=tuple(ThreadStack(tid=tid, comm=draw(comms), frames=draw(stacks)) for tid in tids),
        coroutines=tuple(
            Coroutine(
                address=each,
                stack=0,
                stack_size=0,
                state="parked",
                pc=0,
                sp=0,
                entry=0,
                entry_argument=0,
                caller=0,
                context=0,
                locks_held=0,
                frames=draw(stacks),
            )
            for each in addresses
        ),
    )


@given(look())
def test_what_is_rendered_is_read_again_with_every_frame(one: PastedDump) -> None:
    found = scan(render(one).text.split("\n")).looks
    again = found[0] if found else PastedDump()
    assert len(found) <= 1
    assert {each.tid: (each.comm, each.frames) for each in again.threads} == {
        each.tid: (each.comm, each.frames) for each in one.threads
    }
    assert {each.address: each.frames for each in again.coroutines} == {
        each.address: each.frames for each in one.coroutines
    }


@given(st.text(max_size=4000))
def test_no_text_breaks_the_scanner(text: str) -> None:
    paste = scan(text.split("\n"))
    for each in paste.looks:
        assert scan(render(each).text.split("\n")).frames == sum(
            len(stack.frames) for stack in (*each.threads, *each.coroutines)
        )


@given(
    st.lists(
        st.sampled_from(
            [
                "#0  0x1 in f (",
                "#1 g",
                ")",
                '"',
                "\\",
                "Thread 1 (LWP 7)",
                "    at x.c:1",
                "> ",
                "&lt;",
                "\x1b[1m",
                "(gdb) p lock",
                "$1 = {__owner = 5",
            ]
        ),
        max_size=60,
    )
)
def test_pieces_of_backtraces_in_any_order_do_not_break_the_scanner(pieces: list[str]) -> None:
    scan(pieces)
    scan("".join(pieces).split("\n"))
