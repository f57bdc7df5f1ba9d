"""A stand-in for a Proxmox VE host: its files, sockets and daemons as they are there, around a real QEMU.

Proxmox VE itself is not to be had here. Every path is where Proxmox VE has it, in a mount namespace of our own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from autopsy.drill.guests import write_halting_firmware
from autopsy.drill.process import DrillProcess, start
from autopsy.drill.site import Site, site
from support import lab

ROOT = Path(__file__).resolve().parents[2]
VMID = "102"
SECRET = "hunter2-of-cloud-init"  # noqa: S105 - it is what no bundle may hold

# /etc and /var/lib keep what this machine has; the folders of Proxmox VE are added for whoever lives in here.
MOUNTS = """
mkdir {place}/upper
mount -t tmpfs tmpfs {place}/upper
mkdir -p {place}/upper/etc {place}/upper/lib {place}/upper/we {place}/upper/wl
mount -t overlay overlay -o lowerdir=/etc,upperdir={place}/upper/etc,workdir={place}/upper/we /etc
mount -t overlay overlay -o lowerdir=/var/lib,upperdir={place}/upper/lib,workdir={place}/upper/wl /var/lib
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/log
mkdir -p /run/qemu-server /run/lock/qemu-server /etc/pve /var/log/pve/tasks /var/lib/rrdcached/db/pve-vm-9.0
ln -sfn /run /var/run 2>/dev/null || true
echo ready
exec sleep infinity
"""

# What a pmxcfs without quorum or disk does: it is mounted, and answers nothing any more.
PMXCFS_HANGS = """
import ctypes, os, struct, sys, time
fuse = os.open("/dev/fuse", os.O_RDWR)
libc = ctypes.CDLL(None, use_errno=True)
options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
if libc.mount(b"/dev/fuse", b"/etc/pve", b"fuse", 0, options):
    sys.exit(os.strerror(ctypes.get_errno()))
request = os.read(fuse, 1 << 17)
length, opcode, unique = struct.unpack_from("<IIQ", request)
assert opcode == 26, opcode  # FUSE_INIT
answer = struct.pack("<IIIIHHIIHHI", 7, 31, 0, 0, 12, 10, 1 << 16, 1, 0, 0, 0).ljust(64, bytes(1))
os.write(fuse, struct.pack("<IiQ", 16 + len(answer), 0, unique) + answer)
print("ready", flush=True)
time.sleep(1000)
"""

# qmeventd: QEMU connects to it; when that connection ends it runs `qm cleanup`, which takes the VM's files away.
QMEVENTD = """
import os, socket, sys, time
listening = socket.socket(socket.AF_UNIX)
listening.bind("/run/qmeventd.sock")
listening.listen()
print("ready", flush=True)
while True:
    connection, _ = listening.accept()
    connection.sendall(b'{"execute": "qmp_capabilities"}\\n')
    while connection.recv(65536):
        pass
    time.sleep(0.5)  # `qm cleanup` is Perl
    for name in ("102.pid", "102.qmp"):
        try:
            os.unlink(f"/run/qemu-server/{name}")
        except FileNotFoundError:
            pass
    print("cleaned up", flush=True)
"""

# pvestatd: asks every VM, one after the other, and holds the monitor's one place while it does.
PVESTATD = """
import socket, time
open("/proc/self/comm", "w").write("pvestatd")
print("ready", flush=True)
while True:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect("/run/qemu-server/102.qmp")
        stream = connection.makefile("rwb")
        stream.readline()
        for command in (b'{"execute": "qmp_capabilities"}', b'{"execute": "query-status"}'):
            stream.write(command + b"\\n")
            stream.flush()
            stream.readline()
        time.sleep(0.7)
        stream.close()
    except OSError:
        pass
    finally:
        connection.close()
    time.sleep(0.3)
"""


@dataclass(frozen=True, slots=True)
class Proxmox:
    """The host's stand-in; what runs `inside` sees Proxmox VE's paths."""

    site: Site
    keeper: DrillProcess

    def inside(self, *words: str | Path) -> list[str]:
        """Return the words that run a program where Proxmox VE's paths are."""
        return ["nsenter", f"--mount=/proc/{self.keeper.pid}/ns/mnt", f"--wd={ROOT}", *map(str, words)]

    def sh(self, script: str) -> str:
        """Run a shell script there."""
        done = subprocess.run(self.inside("sh", "-ec", script), capture_output=True, text=True, check=False, timeout=30)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def write(self, path: str, text: str) -> None:
        """Write a file there."""
        subprocess.run(self.inside("sh", "-ec", 'mkdir -p "${0%/*}"; cat >"$0"', path), input=text.encode(), check=True)

    def daemon(self, name: str, code: str) -> DrillProcess:
        """Run one of its daemons until the end."""
        log = self.site.folder / f"{name}.log"
        started = start(self.site, self.inside(sys.executable, "-c", code), log=log.name)
        started.wait_until(f"{name} was ready", lambda: "ready" in log.read_text())
        return started

    def autopsy(self, *words: str | Path, within: float = 120) -> subprocess.CompletedProcess[str]:
        """Run autopsy on that host."""
        environment = os.environ | {"PATH": f"{self.site.folder / 'bin'}:{os.environ['PATH']}"}
        return subprocess.run(
            self.inside(sys.executable, "-m", "autopsy", *words),
            capture_output=True,
            text=True,
            timeout=within,
            check=False,
            env=environment,
        )

    @property
    def pid(self) -> int:
        """Return the process of the VM."""
        return int(self.sh(f"cat /run/qemu-server/{VMID}.pid"))

    def start_vm(self, *, wait: bool = True) -> None:
        """Do what `qm start` does."""
        subprocess.run([self.site.folder / "bin" / "qm", "start", VMID], check=True, timeout=30)
        if wait:
            lab.until("its monitor is there", lambda: "102.qmp" in self.sh("ls /run/qemu-server"))

    def end_vm(self) -> None:
        """Kill the VM, if it runs."""
        for each in Path("/proc").glob("[0-9]*"):
            try:
                command = (each / "cmdline").read_bytes()
            except OSError:
                continue
            if str(self.site.folder).encode() in command and b"/run/qemu-server/102.pid" in command:
                os.kill(int(each.name), 9)


def command_of(place: Path) -> list[str]:
    """Return the command line that qemu-server writes, without the options that only its own QEMU knows (`-id`)."""
    return [
        *("-name", "web,debug-threads=on", "-no-shutdown"),
        *("-chardev", f"socket,id=qmp,path=/var/run/qemu-server/{VMID}.qmp,server=on,wait=off"),
        *("-mon", "chardev=qmp,mode=control"),
        *("-chardev", "socket,id=qmp-event,path=/var/run/qmeventd.sock,reconnect=5"),
        *("-mon", "chardev=qmp-event,mode=control"),
        *("-pidfile", f"/var/run/qemu-server/{VMID}.pid", "-daemonize"),
        *("-smp", "1,sockets=1,cores=1,maxcpus=1", "-nodefaults", "-display", "none", "-m", "64", "-accel", "tcg"),
        *("-bios", str(place / "halt.rom"), "-object", "iothread,id=iothread-virtioscsi0"),
        *("-device", "virtio-scsi-pci,id=virtioscsi0,iothread=iothread-virtioscsi0"),
        *("-drive", f"file={place}/vm-{VMID}-disk-0.raw,if=none,id=drive-scsi0,format=raw,cache=none,aio=native"),
        *("-device", "scsi-hd,bus=virtioscsi0.0,channel=0,scsi-id=0,lun=0,drive=drive-scsi0,id=scsi0"),
    ]


def config(*more: str) -> str:
    """Return the VM's configuration as /etc/pve has it."""
    lines = ("cores: 1", "memory: 64", "name: web", f"cipassword: {SECRET}", f"scsi0: local:{VMID}/disk.raw", *more)
    return "\n".join((*lines, "", "[before]", "lock: of-the-past", "")) + "\n"


def upid(kind: str, began: float, vmid: str = VMID) -> str:
    """Return a task's id as Proxmox VE spells it."""
    return f"UPID:pve1:0000ABCD:00ABCDEF:{int(began):08X}:{kind}:{vmid}:root@pam:"


@contextmanager
def proxmox(*, pmxcfs_hangs: bool = False) -> Iterator[Proxmox]:
    """Run the stand-in with one VM; everything is ended on the way out."""
    lab.need_root()
    stock = lab.build("7.2")
    with site() as there:
        script = MOUNTS.format(place=there.folder)
        keeper = start(there, ["unshare", "--mount", "--propagation=private", "sh", "-ec", script], log="keeper.log")
        keeper.wait_until("its mounts are made", lambda: "ready" in keeper.log.read_text())
        it = Proxmox(there, keeper)
        write_halting_firmware(there.folder / "halt.rom")
        lab.disk(there.folder / f"vm-{VMID}-disk-0.raw")
        (there.folder / "bin").mkdir()
        command = [*it.inside("bash", "-c", 'exec -a /usr/bin/kvm "$0" "$@"', stock.binary), *command_of(there.folder)]
        qm = there.folder / "bin" / "qm"
        qm.write_text(f"#!{sys.executable}\nimport subprocess, sys\nassert sys.argv[1:] == ['start', '102'], sys.argv\n"
                      f"sys.exit(subprocess.run({json.dumps(command)}).returncode)\n")  # fmt: skip
        qm.chmod(0o755)
        if pmxcfs_hangs:
            it.daemon("pmxcfs", PMXCFS_HANGS)
        else:
            it.write(f"/etc/pve/qemu-server/{VMID}.conf", config())
        it.daemon("qmeventd", QMEVENTD)
        there.undo.callback(it.end_vm)
        it.start_vm()
        yield it
