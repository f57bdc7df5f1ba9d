"""The folder's own interpreter lacks nothing that autopsy needs; its build takes too long to be tried here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CASE = ROOT / "fixtures/throttle-deadlock-10.0.2/bundle.tar.zst"

# As in the folder: modules that it does not have are not found, and ssl is what stands in for it.
WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
ABSENT = set(sys.argv.pop(1).split(","))
sys.meta_path.insert(0, Absent())
sys.path.insert(0, sys.argv.pop(1))
from autopsy.cli.app import main
import importlib, pkgutil, autopsy.watch
for module in pkgutil.walk_packages(autopsy.watch.__path__, "autopsy.watch."):
    importlib.import_module(module.name)
assert "prometheus_client" in sys.modules
sys.argv[0] = "autopsy"
main()
"""


def absent() -> set[str]:
    """Return what packaging/python builds no module of, and what it removes from the library."""
    script = (ROOT / "packaging/python").read_text()
    not_built = re.search(r"py_cv_module_\{([\w,]+)\}=n/a", script)
    removed = re.search(r"rm -rf (test .*) config-\*", script)
    assert not_built is not None
    assert removed is not None
    names = {name.removesuffix(".py") for name in removed[1].split()}
    assert {"_ssl", "_sqlite3"} <= set(not_built[1].split(","))
    assert {"idlelib", "pydoc_data"} <= names
    return {*not_built[1].split(","), *names}


def run(*words: str, lacking: Iterable[str] = ()) -> str:
    names = ",".join({*absent(), *lacking})
    command = [sys.executable, "-I", "-B", "-c", WITHOUT, names, str(ROOT / "packaging"), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", env={}, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_stored_case_is_judged_without_the_modules_that_the_folder_lacks_in_an_empty_environment() -> None:
    told = json.loads(run("report", str(CASE), "--format", "json"))
    assert told["diagnosis"]["where"] == "throttle"


def test_without_them_the_vms_of_the_host_are_found_and_a_module_that_is_lacking_is_missed() -> None:
    json.loads(run("ps", "--json"))
    with pytest.raises(AssertionError, match="No module named 'json'"):
        run("ps", "--json", lacking={"json"})
