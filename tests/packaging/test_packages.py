"""The packages install without a network, on the distribution's own Python, and go without a trace."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from support import lab
from support.builds import LAB

ROOT = Path(__file__).resolve().parents[2]
SYSTEM = Path("/usr/bin/python3")
CASE = "throttle-deadlock-10.0.2"

BARE_PYTHONS = {path.name.removeprefix("python") for path in LAB.glob("bare-*/usr/bin/python3.[0-9]*")}

pytestmark = pytest.mark.timeout(600)

# /usr, /var and /etc are this machine's, and stay as they are: what is installed lies in a layer of our own.
INSTALL = """
mount -t tmpfs tmpfs {layer}
for each in usr var etc; do
  mkdir -p {layer}/$each {layer}/work-$each
  mount -t overlay overlay -o lowerdir=/$each,upperdir={layer}/$each,workdir={layer}/work-$each /$each
done
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
cd /
rm -f /var/lib/man-db/auto-update # or every page of this machine is indexed anew, twice
dpkg -i {package} >&2
{work}
mkdir -p /var/lib/autopsy && echo kept >/var/lib/autopsy/bundle
dpkg --purge vm-autopsy >&2
find /usr /etc -path '*autopsy*' ! -path '/usr/share/doc/*'
cat /var/lib/autopsy/bundle
"""


# A layer of our own over a bare Debian; no network. What is tried lies in the folder trial beside it.
ON_BARE = """
mount -t tmpfs tmpfs {layer}
mkdir {layer}/upper {layer}/work {layer}/root
mount -t overlay overlay -o lowerdir={lower},upperdir={layer}/upper,workdir={layer}/work {layer}/root
for each in proc sys dev; do mount --rbind /$each {layer}/root/$each; done
mkdir {layer}/root/trial
mount --bind {layer}/../trial {layer}/root/trial
exec chroot {layer}/root {command}
"""
OLD = """Package: autopsy
Version: 0.1.0
Architecture: all
Maintainer: nobody <nobody@localhost>
Description: the package as it was once called
"""


@dataclass(frozen=True)
class Packages:
    deb: Path
    rpm: Path


def python_of(program: str | Path) -> str:
    words = [program, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def build(out: Path, **environment: str) -> Packages:
    pythons = " ".join(sorted({python_of(SYSTEM), python_of(sys.executable), *BARE_PYTHONS}))
    given = {"BIN": str(Path(sys.executable).parent), "PYTHONS": pythons, "OUT": str(out), "HEAP": ""}
    subprocess.run(
        [ROOT / "packaging" / "build", "deb", "rpm"],
        env={**os.environ, **given, **environment},
        check=True,
        capture_output=True,
        timeout=500,
    )
    return Packages(next(out.glob("vm-autopsy_*.deb")), next(out.glob("vm-autopsy-*.rpm")))


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    if os.environ.get("CI") != "true" and "AUTOPSY_PACKAGES" not in os.environ:
        pytest.skip("packages take a while: CI builds them, or AUTOPSY_PACKAGES=1 has them built")
    lab.need_root()
    for tool in ("dpkg-deb", "rpm2archive", "objdump"):
        if shutil.which(tool) is None:
            lab.missing(f"{tool} is not here: apt install dpkg rpm binutils")
    return build(tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="module")
def unpacked(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack the deb, links and modes as they are."""
    place = tmp_path_factory.mktemp("unpacked")
    subprocess.run(["dpkg-deb", "--extract", packages.deb, place], check=True)
    return place


def installed(package: Path, layer: Path, work: str) -> list[str]:
    """Install the package where nobody else sees it and there is no network, do the work, purge it."""
    layer.mkdir()
    script = INSTALL.format(layer=layer, package=package, work=work)
    done = subprocess.run(
        ["unshare", "--mount", "--net", "--propagation=private", "sh", "-ec", script],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.live
def test_an_installed_package_captures_a_vm_with_nothing_but_the_distributions_python_and_its_purge_leaves_the_bundles(
    packages: Packages, tmp_path: Path
) -> None:
    with lab.qemu("7.2", name="packaged") as vm:
        told = installed(
            packages.deb,
            tmp_path / "layer",
            f"vm-autopsy --version; autopsy ps; autopsy capture pid:{vm.pid} --fast --out {tmp_path};"
            "man -P cat vm-autopsy 2>/dev/null || zcat /usr/share/man/man1/vm-autopsy.1.gz;"
            "bash -n /usr/share/bash-completion/completions/autopsy;"
            "cat /usr/share/zsh/vendor-completions/_autopsy /usr/share/fish/vendor_completions.d/autopsy.fish;"
            "_AUTOPSY_COMPLETE=complete_bash COMP_WORDS='autopsy doc' COMP_CWORD=1 autopsy",
        )
        assert vm.process.alive()
    assert told[0].startswith("autopsy ")
    assert any("packaged" in line for line in told)
    assert any(line.startswith("HEALTHY  ") for line in told)
    assert len(list(tmp_path.glob("autopsy-packaged-*.tar.zst"))) == 1
    assert any("#compdef autopsy" in line for line in told)
    assert any("complete --command autopsy" in line for line in told)
    assert told[-2:] == ["doctor", "kept"]  # nothing that find would have told stands between them


@pytest.mark.live
@pytest.mark.parametrize(
    ("suite", "lower", "qemu"), [("trixie", ("bare-trixie",), "10."), ("sid", ("bare-sid", "qemu-11"), "11.")]
)
def test_on_a_bare_debian_the_package_replaces_the_old_one_captures_a_wedge_outlives_an_upgrade_and_goes(
    packages: Packages, tmp_path: Path, suite: str, lower: tuple[str, ...], qemu: str
) -> None:
    if not all((LAB / name).is_dir() for name in lower):
        lab.missing(f"no bare Debian {suite} with a QEMU: make lab")
    trial, layer = tmp_path / "trial", tmp_path / "layer"
    (trial / "old/DEBIAN").mkdir(parents=True)
    (trial / "old/usr/bin").mkdir(parents=True)
    (trial / "old/DEBIAN/control").write_text(OLD)
    (trial / "old/usr/bin/autopsy").write_text("#!/bin/sh\necho old\n")
    layer.mkdir()
    shutil.copy(packages.deb, trial)
    shutil.copy(Path(__file__).with_name("on_bare_debian"), trial)
    below = ":".join(str(LAB / name) for name in lower)
    script = ON_BARE.format(layer=layer, lower=below, command="/trial/on_bare_debian")
    done = subprocess.run(
        ["unshare", "--mount", "--net", "--propagation=private", "sh", "-ec", script],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert told["stranger"] == "1" or suite == "sid"  # in sid, that may be uninstallable for a while
    assert told["installed"] == "autopsy un vm-autopsy ii "  # un: as if it had never been
    assert told["version"].startswith("autopsy ")
    assert (told["upgrade"], told["left"]) == ("0", "0")
    drilled = json.loads((trial / "drill.json").read_text())
    assert drilled["verdict"]["signature"] == "throttle-timer-wait"
    assert drilled["target"]["qemu_version"].startswith(qemu)
    failed = [step["name"] for step in drilled["steps"] if step["outcome"] == "Failed"]
    assert not failed
    assert json.loads((trial / "report.json").read_text())["diagnosis"]["where"] == "throttle"


def test_the_deb_conflicts_with_the_other_autopsy_and_passes_for_nothing_else(packages: Packages) -> None:
    fields = subprocess.run(["dpkg-deb", "--field", packages.deb], capture_output=True, text=True, check=True).stdout
    control = dict(line.split(": ", 1) for line in fields.splitlines() if not line.startswith(" "))
    assert control["Package"] == "vm-autopsy"
    (maintainer,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["maintainers"]
    assert control["Maintainer"] == f"{maintainer['name']} <{maintainer['email']}>"
    assert control["Conflicts"] == "autopsy"
    assert not {"Provides", "Replaces", "Breaks"} & set(control)
    assert control["Depends"].split(" | ") == ["python3.14", "python3.13", "python3.12", "python3.11"]
    assert "gdb" in control["Recommends"]


def test_the_rpm_wants_one_of_the_pythons_and_passes_for_nothing_else(packages: Packages) -> None:
    def asked(what: str) -> list[str]:
        return subprocess.run(
            ["rpm", "-qp", what, packages.rpm], capture_output=True, text=True, check=True
        ).stdout.splitlines()

    wanted = " or ".join(f"python(abi) = 3.{minor}" for minor in (14, 13, 12, 11))
    assert f"({wanted})" in asked("--requires")
    assert asked("--conflicts") == ["autopsy"]
    assert {line.split()[0].partition("(")[0] for line in asked("--provides")} == {"vm-autopsy"}
    assert not asked("--obsoletes")


def test_both_packages_hold_the_same_files(packages: Packages, unpacked: Path) -> None:
    listed = subprocess.run(["rpm", "-qlp", packages.rpm], capture_output=True, text=True, check=True).stdout
    deb = {f"/{path.relative_to(unpacked)}" for path in unpacked.rglob("*") if not path.is_dir() or path.is_symlink()}
    only_deb = deb - set(listed.splitlines())
    only_rpm = {line for line in set(listed.splitlines()) - deb if not (unpacked / line[1:]).is_dir()}
    assert only_deb == {"/usr/share/zsh/vendor-completions/_autopsy", "/usr/share/doc/vm-autopsy/copyright"}
    assert only_rpm - {"/usr/share/licenses/vm-autopsy"} == {
        "/usr/share/zsh/site-functions/_autopsy",
        "/usr/share/licenses/vm-autopsy/LICENSE",
    }


@pytest.mark.parametrize("suite", ["trixie", "sid"])
def test_the_rpms_files_diagnose_beside_the_python_of_another_distribution(
    packages: Packages, tmp_path: Path, suite: str
) -> None:
    bare, layer, files, trial = LAB / f"bare-{suite}", *(tmp_path / name for name in ("layer", "files", "trial"))
    if not bare.is_dir():
        lab.missing(f"no bare Debian {suite}: make lab")
    for folder in (layer, files, trial):
        folder.mkdir()
    with packages.rpm.open("rb") as rpm:
        archive = subprocess.run(["rpm2archive", "-"], stdin=rpm, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-xz", "-C", files], input=archive, check=True)
    shutil.copy(ROOT / "fixtures" / CASE / "bundle.tar.zst", trial)
    command = "/usr/bin/autopsy analyze /trial/bundle.tar.zst --json"
    script = ON_BARE.format(layer=layer, lower=f"{files}:{bare}", command=command)
    analyzed = subprocess.run(
        ["unshare", "--mount", "--net", "--propagation=private", "sh", "-ec", script],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert analyzed.returncode == 0, analyzed.stderr
    assert json.loads(analyzed.stdout)["where"] == "throttle"


def test_what_is_shipped_has_no_path_of_the_builder_no_odd_mode_and_no_foreign_place(unpacked: Path) -> None:
    assert {path.name for path in unpacked.iterdir()} == {"usr", "etc"}
    built_in = (str(ROOT).encode(), b"/tmp/tmp.")
    for path in unpacked.rglob("*"):
        told = path.lstat()
        assert not told.st_mode & 0o7022 or path.is_symlink(), path
        assert "__pycache__" not in path.parts
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            assert not any(where in data for where in built_in), path
            if data[:2] == b"#!" and told.st_mode & stat.S_IXUSR:
                assert data.split(b"\n")[0].split()[0][2:] == b"/bin/sh", path


def test_the_bill_of_materials_names_what_is_shipped(unpacked: Path) -> None:
    told = json.loads((unpacked / "usr/share/doc/vm-autopsy/vm-autopsy.cdx.json").read_text())
    every = (*told["components"], told["metadata"]["component"])
    named = {(each["name"], each["version"]) for each in every if each["type"] != "file"}
    libraries = {each["name"] for each in every if each["type"] == "file"}
    shipped = {
        (re.sub(r"[-_.]+", "-", name).lower(), version)
        for info in (unpacked / "usr/lib/vm-autopsy").glob("*.dist-info")
        for name, version in [info.name.removesuffix(".dist-info").rsplit("-", 1)]
    }
    assert named == shipped
    assert "prometheus-client" in {name for name, _ in shipped}  # the unit of the watch is shipped
    assert libraries == {f"{path.parent.name}/{path.name}" for path in unpacked.rglob("*.libs/*.so*")}


def test_units_and_sudoers_are_such_as_their_programs_take(unpacked: Path, tmp_path: Path) -> None:
    units = unpacked / "usr/lib/systemd/system"
    capture, kill = (units / name for name in ("autopsy@.service", "autopsy-kill@.service"))
    assert "autopsy capture $AUTOPSY_CAPTURE -- %i" in capture.read_text()
    assert "autopsy capture --then-kill -- %i" in kill.read_text()
    rules = (unpacked / "etc/sudoers.d/vm-autopsy").read_text()
    assert all(line.startswith("#") for line in rules.splitlines())  # nobody gains a right by an installation
    if shutil.which("visudo"):
        active = tmp_path / "sudoers"
        active.write_text(rules.replace("#%oncall", "%oncall"))
        active.chmod(0o440)
        subprocess.run(["visudo", "-c", "-f", active], check=True, capture_output=True)


def test_two_builds_are_one_package_byte_for_byte(packages: Packages, tmp_path: Path) -> None:
    again = build(tmp_path / "again", TZ="UTC-7", LC_ALL="C", TMPDIR=str(tmp_path))
    for first, second in ((packages.deb, again.deb), (packages.rpm, again.rpm)):
        assert hashlib.sha256(first.read_bytes()).digest() == hashlib.sha256(second.read_bytes()).digest(), first.name


def test_the_launcher_takes_no_python_without_its_standard_library(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "pythons").mkdir(parents=True)
    (home / "pythons/3.11").touch()
    for version, whole in (("3.11", True), ("3.12", False)):
        (home / "pythons" / version).touch()
        program = tmp_path / f"python{version}"
        program.write_text(f"#!/bin/sh\necho {version} $1\n")
        program.chmod(0o755)
        if whole:
            (tmp_path / f"lib/python{version}/ctypes").mkdir(parents=True)
    text = (ROOT / "packaging/launcher").read_text()
    text = text.replace("/usr/lib/vm-autopsy", str(home)).replace("/usr/bin", str(tmp_path))
    launcher = tmp_path / "launcher"
    launcher.write_text(text.replace("/usr/lib64", str(tmp_path)).replace("/usr/lib", str(tmp_path / "lib")))
    words = ["/bin/sh", launcher, "--version"]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == "3.11 -I\n"
    shutil.rmtree(tmp_path / "lib")
    refused = subprocess.run(words, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "Python 3.11 3.12" in refused.stderr


def test_what_stands_for_tls_in_the_portable_interpreter_has_the_names_that_are_mentioned() -> None:
    words = "import sys; sys.path.insert(0, sys.argv[1]); import ssl, asyncio, qemu.qmp; from asyncio import sslproto"
    told = subprocess.run(
        [sys.executable, "-c", f"{words}; print(ssl.__file__)", ROOT / "packaging"],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    assert told.stdout.strip() == str(ROOT / "packaging/ssl.py")
    mentioned = set()
    for name in ("base_events", "selector_events"):
        source = Path(asyncio.__file__).with_name(f"{name}.py").read_text()
        mentioned |= set(re.findall(r"\bssl\.(\w+)", source))
    stand_in = (ROOT / "packaging/ssl.py").read_text()
    # A server's and a client's sockets; what a TLS connection alone would touch is never reached.
    assert {name for name in mentioned if f"class {name}" not in stand_in} <= {"SSLContext", "create_default_context"}
