"""The Debian package installs without a network, on the distribution's own Python, and goes without a trace."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import lab

ROOT = Path(__file__).resolve().parents[2]
SYSTEM = Path("/usr/bin/python3")

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
dpkg -i {package} >&2
{work}
dpkg -r vm-autopsy >&2
find /usr/lib/vm-autopsy /usr/bin/autopsy /usr/bin/vm-autopsy 2>/dev/null || true
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if os.environ.get("CI") != "true" and "AUTOPSY_DEB" not in os.environ:
        pytest.skip("a package takes minutes: CI builds it, or AUTOPSY_DEB names one")
    lab.need_root()
    if shutil.which("dpkg-deb") is None or not SYSTEM.exists():
        pytest.skip("no Debian: dpkg-deb is not here")
    if named := os.environ.get("AUTOPSY_DEB"):
        return Path(named)
    out = tmp_path_factory.mktemp("deb")
    python = subprocess.run(
        [SYSTEM, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True, text=True, check=True
    )
    subprocess.run(
        [ROOT / ".ci" / "deb"],
        env={**os.environ, "BIN": str(Path(sys.executable).parent), "PYTHONS": python.stdout.strip(), "OUT": str(out)},
        check=True,
        capture_output=True,
        timeout=500,
    )
    return next(out.glob("vm-autopsy_*.deb"))


def installed(package: Path, layer: Path, work: str) -> str:
    """Install the package where nobody else sees it and there is no network, do the work, remove it again."""
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
    return done.stdout


@pytest.mark.live
def test_an_installed_package_captures_a_vm_with_nothing_but_the_distributions_python(
    package: Path, tmp_path: Path
) -> None:
    with lab.qemu("7.2", name="packaged") as vm:
        told = installed(
            package,
            tmp_path / "layer",
            f"autopsy --version; autopsy ps; autopsy capture pid:{vm.pid} --fast --out {tmp_path}",
        )
        assert vm.process.alive()
    assert told.startswith("autopsy ")
    assert "packaged" in told
    assert "HEALTHY  " in told
    assert len(list(tmp_path.glob("autopsy-packaged-*.tar.zst"))) == 1
    assert "/usr/lib/vm-autopsy" not in told  # what find printed after the removal


def test_the_manual_and_the_completions_come_with_it(package: Path, tmp_path: Path) -> None:
    told = installed(
        package,
        tmp_path / "layer",
        "man -P cat autopsy 2>/dev/null || zcat /usr/share/man/man1/autopsy.1.gz;"
        "bash -n /usr/share/bash-completion/completions/autopsy;"
        "cat /usr/share/zsh/vendor-completions/_autopsy /usr/share/fish/vendor_completions.d/autopsy.fish;"
        "_AUTOPSY_COMPLETE=complete_bash COMP_WORDS='autopsy cap' COMP_CWORD=1 autopsy",
    )
    assert "#compdef autopsy" in told
    assert "complete --command autopsy" in told
    assert "capture" in told.splitlines()[-1]


def test_the_package_says_what_it_needs(package: Path) -> None:
    control = subprocess.run(["dpkg-deb", "--field", package], capture_output=True, text=True, check=True).stdout
    assert "Package: vm-autopsy" in control.splitlines()
    assert "gdb" in next(line for line in control.splitlines() if line.startswith("Depends:"))
