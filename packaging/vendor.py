"""Lays out one folder with autopsy and all that it needs, from wheels that several Pythons and old hosts can load.

A module in C says in its name which Python it is for, so that they lie side by side: one folder serves every Python.
"""

from __future__ import annotations

import argparse
import filecmp
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# glibc 2.17: what every distribution that has a Python new enough can load.
PLATFORMS = tuple(
    f"{name}_x86_64" for name in ("manylinux2014", "manylinux_2_17", "manylinux_2_12", "manylinux2010", "manylinux1")
)
# Of pip's own book-keeping, which tells where and by what the files were installed; the package manager knows better.
OF_PIP = ("RECORD", "WHEEL", "INSTALLER", "REQUESTED", "direct_url.json")
LEFT_OUT = ("bin", "share", "include")
NEWEST_GLIBC = (2, 28)
NEEDS = re.compile(r"\bGLIBC_(\d+)\.(\d+)")
OF_ONE_PYTHON = re.compile(r"\.(?:cpython-3\d+-[\w-]+|abi3)\.so$")


def fetch(python: str, wanted: list[str], into: Path, wheels: Path | None) -> None:
    """Have pip lay out for one Python what is wanted and what that needs; from a folder of wheels, or an index."""
    source = ["--no-index", "--find-links", str(wheels)] if wheels else []
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    words = [
        "--quiet",
        "--disable-pip-version-check",
        "--no-compile",
        "--only-binary=:all:",
        "--python-version",
        python,
    ]
    command = [sys.executable, "-m", "pip", "install", *words, *platforms, *source, "--target", str(into), *wanted]
    subprocess.run(command, check=True)


def tidy(tree: Path) -> None:
    """Remove what would differ from build to build, and what nobody imports."""
    for name in LEFT_OUT:
        shutil.rmtree(tree / name, ignore_errors=True)
    for info in tree.glob("*.dist-info"):
        for name in OF_PIP:
            (info / name).unlink(missing_ok=True)
    shutil.rmtree(tree / "typer/.agents", ignore_errors=True)
    unused = (
        "zstandard/_cffi.*.so",
        "markupsafe/*.c",
    )  # the first wants cffi, which is not here; its twin in C is used
    for other in (path for pattern in unused for path in tree.glob(pattern)):
        other.unlink()


def merge(tree: Path, home: Path) -> None:
    """Lay one Python's files beside the others'; what they share must be the same file."""
    for source in sorted(path for path in tree.rglob("*") if path.is_file()):
        target = home / source.relative_to(tree)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        elif "sboms" not in source.parts and not filecmp.cmp(source, target, shallow=False):  # they name the wheel
            raise SystemExit(f"{source.relative_to(tree)} is not the same file for every Python")


def check(home: Path) -> None:
    """Refuse a module in C that is for no one Python by its name, or that an old host could not load."""
    for module in home.rglob("*.so"):
        if not module.parent.name.endswith(".libs") and not OF_ONE_PYTHON.search(module.name):
            raise SystemExit(f"{module}: its name does not say which Python it is for")
    for library in home.rglob("*.so*"):
        printed = subprocess.run(["objdump", "-T", str(library)], capture_output=True, text=True, check=True).stdout
        newest = max(((int(major), int(minor)) for major, minor in NEEDS.findall(printed)), default=(0, 0))
        if newest > NEWEST_GLIBC:
            raise SystemExit(f"{library} needs glibc {newest[0]}.{newest[1]}")


def main() -> None:
    """Do it."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("home", type=Path, help="the folder, which is made")
    words.add_argument("wanted", nargs="+", help="what pip is to install")
    words.add_argument("--python", action="append", required=True, help="3.11; several times for several")
    words.add_argument("--wheels", type=Path, help="a folder with all wheels: nothing is fetched then")
    words.add_argument("--without", type=Path, help="a folder that is laid out already: its files are left out")
    asked = words.parse_args()
    for python in asked.python:
        with tempfile.TemporaryDirectory() as work:
            fetch(python, asked.wanted, Path(work), asked.wheels)
            tidy(Path(work))
            if asked.without:
                for known in (path for path in asked.without.rglob("*") if path.is_file()):
                    (Path(work) / known.relative_to(asked.without)).unlink(missing_ok=True)
            merge(Path(work), asked.home)
    check(asked.home)


if __name__ == "__main__":
    main()
