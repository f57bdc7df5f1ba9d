"""Every bound of the code is listed in docs/limits.md, with where it is told; what bites in the evidence is told."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from support import lab

CODE = lab.HOUSE / "autopsy"
# Whatever evidence passes before it is facts.
PACKAGES = ("capture/", "examine/", "facts/", "files/", "linux/")
LIST = (lab.HOUSE / "docs" / "limits.md").read_text(encoding="utf-8")
BOUND = re.compile(r"^(?:MOST|LARGEST|LONGEST|DEEPEST)(?:_|$)|(?:^|_)CAP(?:_BYTES)?$")
# A file, then all of its bounds up to the next one: in a row of a table, or in a line.
WORDS = re.compile(r"(?P<file>\b[\w/]+\.py\b)|`(?P<bound>[A-Z][A-Z_]+)`")


def in_the_code(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield each bound as its file and its name, as the syntax tree has it."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            targets = node.targets if isinstance(node, ast.Assign) else ()
            targets = (node.target,) if isinstance(node, ast.AnnAssign) else targets
            for name in (each for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)):
                if BOUND.search(name.id):
                    yield path.relative_to(folder).as_posix(), name.id


def in_the_list(text: str) -> Iterator[tuple[str, str]]:
    file = ""
    for found in WORDS.finditer(text):
        if found["file"]:
            file = found["file"]
        elif BOUND.search(found["bound"]):
            yield file, found["bound"]


def test_every_bound_of_the_code_is_listed_with_where_it_is_told() -> None:
    code = {each for each in in_the_code(CODE) if each[0].startswith(PACKAGES)}
    told = set(in_the_list(LIST))
    assert not code - told, "tell in docs/limits.md where it is told that these bit"
    assert not told - code, "these are no longer in the code"


def test_a_new_bound_is_found_however_it_is_assigned(tmp_path: Path) -> None:
    (tmp_path / "new.py").write_text(
        "MOST_A = 1\nMOST_B: int = 2\nMOST_C, OTHER = 3, 4\nSTACK_CAP = 5\nCAP_SYS_ADMIN = 6\n"
    )
    assert {name for _, name in in_the_code(tmp_path)} == {"MOST_A", "MOST_B", "MOST_C", "STACK_CAP"}
