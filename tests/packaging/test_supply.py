"""What is shipped, and what it stands on."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path

import audit
import pytest
import sbom

from tests.packaging.test_packaging import checkout  # noqa: F401 - a fixture

EPOCH = "1700000000"


def test_two_builds_of_one_tree_are_one_wheel(checkout: Path, tmp_path: Path) -> None:  # noqa: F811 - the fixture
    digests = []
    for number in range(2):
        out = tmp_path / str(number)
        subprocess.run(
            [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", out, checkout],
            check=True,
            capture_output=True,
            env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH, "TZ": f"UTC{number:+d}"},
        )
        (wheel,) = out.iterdir()
        digests.append(hashlib.sha256(wheel.read_bytes()).hexdigest())
        for each in checkout.rglob("*.py"):
            os.utime(each, (number, number))
    assert digests[0] == digests[1]


def test_the_bill_of_materials_names_what_is_needed_and_nothing_else() -> None:
    found = sbom.needed("typer")
    if sbom.OURS in {each.name for each in metadata.distributions()}:
        found = sbom.needed(sbom.OURS)
        assert {"msgspec", "zstandard", "jinja2", "qemu-qmp", "pygdbmi"} <= set(found)
    assert "pytest" not in found
    made = sbom.component("typer", found["typer"], "library")
    assert made["purl"] == f"pkg:pypi/typer@{metadata.version('typer')}"


def test_every_dependency_has_a_floor_and_a_reason() -> None:
    lines = (Path(__file__).parents[2] / "pyproject.toml").read_text().splitlines()
    start = lines.index("dependencies = [")
    wanted = lines[start + 1 : lines.index("]", start)]
    assert wanted
    for line in wanted:
        assert ">=" in line
        assert "#" in line, f"no reason: {line}"


@pytest.mark.parametrize("name", ["msgspec", "zstandard"])
def test_a_component_tells_its_licence(name: str) -> None:
    assert sbom.licences(metadata.distribution(name))


class _Advisories(BaseHTTPRequestHandler):
    """A stand-in for api.osv.dev, in OSV's own words, that knows of one bad version."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        bad = (asked["package"]["name"], asked["version"]) == ("leaky", "1.0")
        affected = {
            "package": {"name": "leaky", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.1"}]}],
        }
        known = {"id": "PYSEC-2026-1", "summary": "it leaks", "affected": [affected]}
        answer = json.dumps({"vulns": [known]} if bad else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def advisories_of_ours() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Advisories) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/query"
        finally:
            server.shutdown()


def test_an_audit_tells_a_bad_version_and_passes_a_good_one() -> None:
    with advisories_of_ours() as service:
        (told,) = audit.advisories({"leaky": "1.0", "tight": "2.0"}, service)
        assert told == "leaky 1.0: PYSEC-2026-1, fixed in 1.1"
        assert audit.advisories({"leaky": "1.1", "tight": "2.0"}, service) == []


def test_an_audit_that_could_not_ask_does_not_say_that_all_is_well() -> None:
    with advisories_of_ours() as service:
        pass
    assert isinstance(audit.advisories({"leaky": "1.0"}, service), audit.NotAsked)


def test_nothing_is_known_against_what_is_installed() -> None:
    found = audit.advisories(audit.installed() or {"typer": metadata.version("typer")})
    if isinstance(found, audit.NotAsked):
        pytest.skip(f"the service of advisories cannot be asked: {found.why}")
    assert found == []


def test_a_bill_of_what_is_laid_out_names_the_libraries_in_wheels_and_what_the_interpreter_is_made_of(
    tmp_path: Path,
) -> None:
    info = tmp_path / "lib/vm_autopsy-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vm-autopsy\nVersion: 0.1.0\n")
    (tmp_path / "lib/drgn.libs").mkdir()
    (tmp_path / "lib/drgn.libs/libelf-1a2b.so.1").write_bytes(b"\x7fELF")
    (tmp_path / "sources").write_text("python3.13 3.13.5\nzlib 1.3.1\n")
    made = sbom.bill(folders=[str(tmp_path / "lib")], sources=tmp_path / "sources")
    assert [each["name"] for each in made["components"]] == ["drgn.libs/libelf-1a2b.so.1", "python3.13", "zlib"]
    assert made["components"][1]["purl"] == "pkg:deb/debian/python3.13@3.13.5?arch=source"
    json.dumps(made)
