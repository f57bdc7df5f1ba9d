"""However much is given, what is read of it is bounded, and what was left out is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from autopsy.incoming import reading
from autopsy.incoming.material import Material
from autopsy.incoming.stacks import gdb_text
from autopsy.incoming.stacks.gdb_text import scan
from autopsy.incoming.texts import command_lines
from support.built.imported import NOWHERE


def told(place: Path, text: str) -> Material:
    given = place / "given"
    given.write_text(text)
    with given.open("rb") as file:
        return reading.read_evidence([file.fileno()], NOWHERE)


def test_a_line_of_a_megabyte_is_cut_and_told(tmp_path: Path) -> None:
    found = told(tmp_path, f'#0  0x1 in f (a="{"x(" * 500_000}\n#1  0x2 in g () at x.c:1\n')
    assert [frame.function for look in found.paste.looks for each in look.threads for frame in each.frames] == [
        "f",
        "g",
    ]
    assert any("longer than" in note for note in found.notes)


def test_more_text_than_anybody_reads_is_read_for_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MOST_TEXT", 1 << 20)
    found = told(tmp_path, "Thread 1 (LWP 7):\n#0  0x1 in f ()\n" + "nothing\n" * 400_000)
    assert found.paste.frames == 1
    assert any("first 1 MiB" in note for note in found.notes)


def test_more_threads_than_any_process_has_are_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gdb_text, "MOST_THREADS", 100)
    found = scan(line for number in range(1, 1001) for line in (f"Thread {number} (LWP {number}):", "#0  0x1 in f ()"))
    assert [len(look.threads) for look in found.looks] == [100]
    assert any("900 frames were left out" in note for note in found.notes)


def test_more_frames_than_anybody_reads_are_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gdb_text, "MOST_FRAMES", 100)
    found = scan(f"#{number}  0x1 in f ()" for number in range(150))
    assert found.frames == 100
    assert any("50 frames were left out" in note for note in found.notes)


@pytest.mark.parametrize(
    "piece",
    ['{"a":[', "#0  0x1 in f (\n", "\x1b[", "> ", "x \\\n", "qemu-kvm - ", "&lt;", "(gdb) ", "INFO: task kvm:1", "[["],
)
def test_a_piece_that_never_ends_costs_no_more_than_its_length(piece: str, tmp_path: Path) -> None:
    told(tmp_path, piece * (400_000 // len(piece)))


def test_no_more_than_so_many_machines_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_lines, "MOST_MACHINES", 10)
    found = told(tmp_path, "".join(f"/usr/bin/kvm -id {number} -name vm{number}\n" for number in range(100)))
    assert found.machines == ()
    assert any("10 VMs are told of" in note for note in found.notes)
