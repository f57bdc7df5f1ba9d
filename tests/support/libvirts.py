"""A real libvirtd of our own, at its usual paths, in a mount namespace where those paths are ours alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autopsy.drill.guests import write_halting_firmware
from autopsy.drill.process import DrillProcess, start
from autopsy.drill.site import Site, site
from support import lab

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("/run/libvirt", "/etc/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt")
SECRET = "hunter2%"  # noqa: S105 - it is what no bundle may hold

# cgroup_controllers: this machine's cgroups stay as they are.
QEMU_CONF = """
security_driver = "none"
cgroup_controllers = [ ]
user = "root"
group = "root"
"""

DOMAIN = """
<domain type='{kind}'>
  <name>{name}</name>
  <memory unit='MiB'>64</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type><loader type='rom'>{rom}</loader></os>
  <iothreads>1</iothreads>
  <devices>
    <emulator>{emulator}</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='none' io='threads'/>
      <source file='{image}'/><target dev='vda' bus='virtio'/>
      <iotune><total_bytes_sec>1</total_bytes_sec></iotune>
    </disk>
    <graphics type='vnc' port='{port}' autoport='no' listen='127.0.0.1' passwd='{secret}'/>
    <memballoon model='none'/>
  </devices>
</domain>
"""


@dataclass(frozen=True, slots=True)
class Libvirt:
    """A libvirtd; what runs `inside` sees its files at their usual paths."""

    site: Site
    keeper: DrillProcess
    daemon: DrillProcess

    def inside(self, *words: str | Path) -> list[str]:
        """Return the words that run a program where libvirt's usual paths are this libvirt's."""
        return ["nsenter", f"--mount=/proc/{self.keeper.pid}/ns/mnt", f"--wd={ROOT}", *map(str, words)]

    def virsh(self, *words: str, within: float = 60) -> str:
        """Return what virsh prints."""
        done = subprocess.run(
            self.inside("virsh", "-q", "-c", "qemu:///system", *words),
            capture_output=True,
            text=True,
            timeout=within,
            check=False,
        )
        assert done.returncode == 0, done.stderr + self.daemon.log.read_text()[-2000:]
        return done.stdout.strip()

    def autopsy(self, *words: str | Path, within: float = 120) -> subprocess.CompletedProcess[str]:
        """Run autopsy beside this libvirt."""
        return subprocess.run(
            self.inside(sys.executable, "-m", "autopsy", *words),
            capture_output=True,
            text=True,
            timeout=within,
            check=False,
        )

    def pid(self, name: str) -> int:
        """Return the process of a running domain."""
        return int((self.site.folder / "run" / "qemu" / f"{name}.pid").read_text())

    def state(self, name: str) -> str:
        """Return what `virsh list --all` says of a domain, empty where it does not list it."""
        rows = [line.split(maxsplit=2) for line in self.virsh("list", "--all").splitlines()]
        return next((row[2].strip() for row in rows if row[1] == name), "")

    def hmp(self, name: str, line: str) -> str:
        """Run one line of the human monitor."""
        return self.virsh("qemu-monitor-command", name, "--hmp", line)

    def wedge(self, name: str, writes: int = 4) -> None:
        """Park writes in the disk's throttle group: after the first, the next passes in more than an hour."""
        for _ in range(writes):
            self.hmp(name, 'qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend "aio_write 0 4k"')


def answer(done: subprocess.CompletedProcess[str]) -> Any:
    """Return the one object that `capture --json` printed."""
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


@contextmanager
def libvirt() -> Iterator[Libvirt]:
    """Run a libvirtd, and end it with all its domains on the way out."""
    lab.need_root()
    for program in ("libvirtd", "virtlogd", "virsh", "nsenter"):
        if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin") is None:
            lab.missing(f"{program} is not here: apt install libvirt-daemon-system libvirt-clients")
    with site() as there:
        made = [path for path in PLACES if not Path(path).exists()]
        for path in made:
            Path(path).mkdir()
            there.undo.callback(Path(path).rmdir)
        ours = [(there.folder / Path(path).parts[-2], path) for path in PLACES]
        for folder, path in ours:
            shutil.copytree(path, folder) if path.startswith("/etc") else folder.mkdir()
        shutil.rmtree(there.folder / "etc" / "qemu", ignore_errors=True)  # no networks: they are the whole machine's
        (there.folder / "etc" / "qemu.conf").write_text(QEMU_CONF)
        mounts = "\n".join(f"mount --bind {folder} {path}" for folder, path in ours)
        keeper = start(
            there,
            ["unshare", "--mount", "--propagation=slave", "sh", "-ec", f"{mounts}\necho ready\nexec sleep infinity"],
            log="keeper.log",
        )
        keeper.wait_until("its mounts are made", lambda: "ready" in keeper.log.read_text())
        inside = Libvirt(there, keeper, keeper).inside
        start(there, inside("virtlogd", "--pid-file", there.folder / "virtlogd.pid"), log="virtlogd.log")
        daemon = start(there, inside("libvirtd", "--pid-file", there.folder / "libvirtd.pid"), log="libvirtd.log")
        daemon.wait_until("its socket is there", (there.folder / "run" / "libvirt-sock").exists)
        there.undo.callback(_end_all, there.folder)
        yield Libvirt(there, keeper, daemon)


def _end_all(folder: Path) -> None:
    """Kill what libvirtd started: its QEMUs are daemons of their own, and outlive it."""
    for pidfile in (folder / "run" / "qemu").glob("*.pid"):
        if pidfile.name != "driver.pid":
            pid = int(pidfile.read_text())
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            try:
                if str(folder) in Path(f"/proc/{pid}/cmdline").read_text():
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    lab.until("a domain has ended", lambda each=pid: not Path(f"/proc/{each}/exe").exists())
            finally:
                os.close(pidfd)


def _free_port() -> int:
    """Return a port that nobody listens on: two daemons side by side would choose the same one."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def define(it: Libvirt, name: str, image: Path, *, start_it: bool = True) -> str:
    """Define a domain with one disk, start it, and return its uuid."""
    rom = it.site.folder / "halt.rom"
    write_halting_firmware(rom)
    xml = it.site.folder / f"{name}.xml"
    xml.write_text(
        DOMAIN.format(
            kind="kvm" if lab.kvm_works() else "qemu",
            name=name,
            rom=rom,
            emulator=lab.build("7.2").binary,
            image=image,
            secret=SECRET,
            port=_free_port(),
        )
    )
    it.virsh("define", str(xml))
    if start_it:
        it.virsh("start", name)
    return it.virsh("domuuid", name)
