"""What a program that we start is given, and where it is looked for: nobody else chooses either."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from autopsy.capture.reading.programs import output
from autopsy.linux import environment


def program(folder: Path, name: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("#!/bin/sh\nenv\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize("lure", ["others may write to it", "it lies below such a folder", "a link leads there"])
def test_no_program_is_taken_from_a_folder_that_others_may_write_to(
    lure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_to_all = tmp_path / "open"
    folder = open_to_all / "bin" if "below" in lure else open_to_all
    open_to_all.mkdir()
    program(folder, "ss")
    open_to_all.chmod(0o777)
    (tmp_path / "link").symlink_to(folder)
    named = tmp_path / "link" if "link" in lure else folder
    monkeypatch.setenv("PATH", f"{named}:.:relative/bin:{os.environ['PATH']}")
    assert str(open_to_all) not in environment.path()
    assert str(tmp_path) not in environment.path()
    assert all(os.path.isabs(each) for each in environment.path().split(":"))


def test_a_folder_of_our_own_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some systems have their programs in no folder that is known beforehand."""
    program(tmp_path / "bin", "ss")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin")
    assert environment.path().split(":")[0] == os.path.realpath(tmp_path / "bin")


def test_a_program_of_the_host_is_given_nothing_of_the_callers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin", "ss")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    for name in ("LD_PRELOAD_", "LD_LIBRARY_PATH", "PYTHONPATH", "GDBHISTFILE", "DEBUGINFOD_URLS", "BASH_ENV", "IFS"):
        monkeypatch.setenv(name, "/lure")
    told = output(("ss",), seconds=10)
    assert isinstance(told, bytes)
    assert b"/lure" not in told
    assert {line.partition(b"=")[0] for line in told.splitlines()} <= {
        *(b"PATH", b"HOME", b"LC_ALL", b"TERM", b"TZ", b"PWD", b"OLDPWD", b"SHLVL", b"_"),
    }
