"""The rules of the house that no linter holds."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import Counter
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parent.parent
MOST_LINES = 400
MOST_FILES = 20  # of code in one folder: more than that is a list, not a place
VAGUE = re.compile(r"\w(Manager|Helper|Util|Utils|Handler)$")
UNREASONED = re.compile(r"#\s*(noqa(?!: [A-Z]+\d+(, ?[A-Z]+\d+)* - \S)|type: ignore(?!\[[a-z-]+\] {2}# \S))")
# Places that exist on somebody's machine only, and hosts that packages come from.
FOREIGN = re.compile(
    r"(?<![\w.])/(work|opt/lab|root/\.pyenv)/|\b(pypi\.org|pythonhosted\.org|deb\.debian\.org|snapshot\.debian\.org)\b"
)


def tracked() -> list[Path]:
    """Return every file that is or will be committed."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=HOUSE,
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.decode().split("\0") if name and (path := HOUSE / name).is_file()]


def sources() -> list[Path]:
    return [path for path in tracked() if path.suffix == ".py"]


@cache
def parsed(path: Path) -> ast.Module:
    """Return a file's syntax tree; most rules go over those of all."""
    return ast.parse(path.read_text(encoding="utf-8"))


def name(path: Path) -> str:
    return str(path.relative_to(HOUSE))


def test_every_file_is_under_400_lines() -> None:
    long = {name(path): count for path in sources() if (count := len(path.read_text().splitlines())) >= MOST_LINES}
    assert long == {}


def test_every_file_of_the_package_says_its_job_in_its_first_line() -> None:
    silent = [
        name(path)
        for path in sources()
        if path.is_relative_to(HOUSE / "autopsy") and not re.match(r'"""[^"\n]+\.(""")?\n', path.read_text())
    ]
    assert silent == []


def test_no_class_has_a_name_that_says_nothing() -> None:
    vague = [
        f"{name(path)}: {node.name}"
        for path in sources()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ClassDef) and VAGUE.search(node.name)
    ]
    assert vague == []


def test_no_class_name_means_two_things() -> None:
    """The subjects of a diagnosis (`subjects.Disk`) are always written with their module: the nouns are theirs."""
    names = Counter(
        node.name
        for path in sources()
        if path.is_relative_to(HOUSE / "autopsy") and path.name != "subjects.py"
        for node in parsed(path).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_every_exception_to_the_linters_has_its_reason() -> None:
    bare = [
        f"{name(path)}:{number}: {line.strip()}"
        for path in sources()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if path.name != Path(__file__).name and UNREASONED.search(line)
    ]
    assert bare == []


def test_nothing_of_one_machine_is_committed() -> None:
    found = []
    for path in tracked():
        if path.name == Path(__file__).name or "fixtures" in path.relative_to(HOUSE).parts:
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [f"{name(path)}: {match.group()}" for match in FOREIGN.finditer(text)]
    assert found == []


def test_nothing_big_is_committed() -> None:
    big = {name(path): path.stat().st_size for path in tracked() if path.stat().st_size > 5_000_000}
    assert big == {}


AT_THE_TOP = {
    *(".ci", ".gitignore", "autopsy", "docs", "fixtures", "monitoring", "packaging", "runbooks", "templates", "tests"),
    *("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "SECURITY.md", "pyproject.toml", "tools"),
}


def test_nothing_else_lies_at_the_top() -> None:
    assert {path.relative_to(HOUSE).parts[0] for path in tracked()} == AT_THE_TOP


def test_no_folder_of_code_holds_more_than_20_files() -> None:
    folders = Counter(name(path.parent) for path in sources())
    assert {folder: count for folder, count in folders.items() if count > MOST_FILES} == {}


# A file that is made or replaced goes through autopsy/files/private.py: what a stranger laid is not written through.
# (autopsy/examine writes to its scratch alone, in a process that can reach nothing else.)
WRITERS = ("autopsy/bundle", "autopsy/capture", "autopsy/commands", "autopsy/kill", "autopsy/redact", "autopsy/report")
MAKES = {"write_text", "write_bytes", "copyfile", "copytree", "copy", "copy2", "mkdir", "makedirs", "touch", "mkstemp"}
OF_A_MODULE = {"copy", "copy2"}  # on anything else a method of that name copies no file


def _makes_a_file(call: ast.Call) -> bool:
    called = call.func
    word = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
    owner = called.value.id if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) else ""
    if word in MAKES:
        return word not in OF_A_MODULE or owner == "shutil"
    if word != "open":
        return False
    if owner == "os":
        return "O_CREAT" in ast.unparse(call)
    if owner == "tarfile":
        return False
    modes = [*call.args[1 if not owner else 0 :], *(each.value for each in call.keywords if each.arg == "mode")]
    return any(isinstance(each, ast.Constant) and set(str(each.value)) & set("wax+") for each in modes[:1])


def test_files_are_made_in_one_way() -> None:
    found = [
        f"{name(path)}:{node.lineno}: {ast.unparse(node)[:60]}"
        for path in sources()
        if name(path).startswith(WRITERS)
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and _makes_a_file(node)
    ]
    assert found == []


STARTS = {"run", "Popen", "call", "check_call", "check_output"}
ELSEWHERE = {
    "system",
    "popen",
    "spawnv",
    "spawnve",
    "spawnvp",
    "posix_spawn",
    "posix_spawnp",
    "execv",
    "execvp",
    "execvpe",
}


def _starts_a_program(call: ast.Call) -> bool:
    called = call.func
    if not isinstance(called, ast.Attribute) or not isinstance(called.value, ast.Name):
        return False
    of_a_process = called.value.id == "subprocess" and called.attr in STARTS
    return of_a_process or (called.value.id in {"os", "asyncio"} and called.attr in ELSEWHERE)


def test_no_program_is_started_with_the_callers_environment() -> None:
    """Whoever chooses PATH, LD_PRELOAD or PYTHONPATH of a program of root's chooses what root runs."""
    found = [
        f"{name(path)}:{node.lineno}: {ast.unparse(node)[:60]}"
        for path in sources()
        if name(path).startswith("autopsy/")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and _starts_a_program(node) and not _gives_ours(node)
    ]
    assert found == []


def _gives_ours(call: ast.Call) -> bool:
    given = [ast.unparse(each.value) for each in call.keywords if each.arg == "env"]
    return len(given) == 1 and given[0].startswith(("ours(", "environment.ours(")) and "os.environ}" not in given[0]


# All children of ours are forked, heard and ended by linux/tasks/forking.py; but the guardian of a debugger, which has
# to outlive whatever ends us.
FORKS = {"autopsy/linux/tasks/forking.py", "autopsy/capture/gdb/guardian.py"}


def test_children_are_forked_in_one_way() -> None:
    forking = {
        name(path)
        for path in sources()
        if name(path).startswith("autopsy/")
        for node in ast.walk(parsed(path))
        if (isinstance(node, ast.Attribute) and node.attr in {"fork", "forkpty"} and ast.unparse(node.value) == "os")
        or (isinstance(node, ast.Import) and any(module.name == "multiprocessing" for module in node.names))
        or (isinstance(node, ast.ImportFrom) and node.module in {"os", "pty", "multiprocessing"})
    }
    assert forking == FORKS


# A variable says what it holds: these would fit any.
EMPTY_WORDS = {"each", "found", "told", "got", "it", "thing"}
SAYS_WHAT_IT_HOLDS = (
    "autopsy/bundle/",
    "autopsy/capture/",
    "autopsy/cli/",
    "autopsy/commands/",
    "autopsy/diagnose/advice/",
    "autopsy/diagnose/frames/",
    "autopsy/diagnose/queries/",
    "autopsy/diagnose/signatures/",
    "autopsy/diagnose/waits/",
    "autopsy/drill/",
    "autopsy/examine/",
    "autopsy/facts/",
    "autopsy/files/",
    "autopsy/fleet/",
    "autopsy/kill/",
    "autopsy/redact/",
    "autopsy/replay/",
    "autopsy/report/",
    "autopsy/store/",
    "autopsy/watch/",
)


def _bound(node: ast.AST) -> str:
    """Return the name that a node binds, empty where it binds none."""
    match node:
        case ast.Name(id=word, ctx=ast.Store()) | ast.arg(arg=word):
            return word
        case ast.MatchAs(name=str(word)) | ast.MatchStar(name=str(word)) | ast.ExceptHandler(name=str(word)):
            return word
        case ast.FunctionDef(name=word) | ast.AsyncFunctionDef(name=word) | ast.ClassDef(name=word):
            return word
        case _:
            return ""


def test_a_variable_says_what_it_holds() -> None:
    empty = [
        f"{name(path)}:{node.lineno}: {word}"
        for path in sources()
        if name(path).startswith(SAYS_WHAT_IT_HOLDS)
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.expr | ast.stmt | ast.arg | ast.pattern | ast.excepthandler)
        and (word := _bound(node)) in EMPTY_WORDS
    ]
    assert empty == []


def _imported(path: Path) -> set[tuple[str, str]]:
    """Return what a file takes of the package, as module and name."""
    froms = (node for node in ast.walk(parsed(path)) if isinstance(node, ast.ImportFrom))
    return {
        (node.module, each.name) for node in froms if (node.module or "").startswith("autopsy") for each in node.names
    }


def test_what_tools_take_of_the_package_is_there() -> None:
    # No test runs most of them, and types are checked in the package alone.
    files = [path for path in sources() if path.is_relative_to(HOUSE / "tools")]
    wanted = {pair for path in files for pair in _imported(path)}
    missing = []
    for module, taken in sorted(wanted):
        if find_spec(module) is None:
            missing.append(module)
        elif not hasattr(import_module(module), taken) and find_spec(f"{module}.{taken}") is None:
            missing.append(f"{module}.{taken}")
    assert wanted
    assert missing == []
