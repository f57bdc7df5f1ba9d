"""A copy for strangers: nothing of whose machine it was, and the same diagnosis."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopsy.bundle import layout
from autopsy.bundle.archive import members
from autopsy.bundle.manifest import Manifest, encode_manifest
from autopsy.bundle.reader import open_bundle
from autopsy.bundle.sections import Section, parse, render
from autopsy.bundle.verify import verify
from autopsy.commands.redact import redact
from autopsy.errors import NotStored
from autopsy.redact.command_line import command_line
from autopsy.redact.files import redacted
from autopsy.redact.pseudonyms import Pseudonyms
from support import lab

FIXTURES = lab.HOUSE / "fixtures"
UNPACKED = tuple(sorted(path.parent for path in FIXTURES.glob("*/bundle")))
PACKED = tuple(sorted(path.parent for path in FIXTURES.glob("*/bundle.tar.zst")))
CASES = (*UNPACKED, *PACKED[:4])  # `make soak` takes them all


def copied(case: Path, to: Path) -> Path:
    to.mkdir()
    if (case / "bundle").is_dir():
        return Path(shutil.copytree(case / "bundle", to / "bundle"))
    return Path(shutil.copyfile(case / "bundle.tar.zst", to / "bundle.tar.zst"))


def everything(bundle: Path) -> bytes:
    """Return every byte of a bundle that a stranger can read, names of files included."""
    return b"\n".join(each.name.encode() + b"\n" + b"".join(each.parts()) for each in members(bundle))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_redacted_bundle_is_diagnosed_as_the_original_is(case: Path, tmp_path: Path) -> None:
    done = redact(copied(case, tmp_path / "in"), tmp_path / "out.tar.zst")
    assert done.same
    assert verify(done.sealed.path).manifest.notes[-1].startswith("redacted: ")


def test_the_same_bundle_gives_the_same_copy(tmp_path: Path) -> None:
    case = UNPACKED[0]
    first = redact(copied(case, tmp_path / "a"), tmp_path / "a.tar.zst")
    second = redact(copied(case, tmp_path / "b"), tmp_path / "b.tar.zst")
    assert first.sealed.sha256 == second.sealed.sha256


def test_a_copy_whose_files_could_not_be_packed_ahead_holds_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no room")

    case = UNPACKED[0]
    ahead = redact(copied(case, tmp_path / "a"), tmp_path / "a.tar.zst")
    monkeypatch.setattr("autopsy.commands.redact.pack_ahead", refuses)
    at_once = redact(copied(case, tmp_path / "b"), tmp_path / "b.tar.zst")
    assert verify(at_once.sealed.path).manifest == verify(ahead.sealed.path).manifest


def test_only_its_owner_may_read_copy_and_map(tmp_path: Path) -> None:
    done = redact(copied(UNPACKED[0], tmp_path / "in"), tmp_path / "out.tar.zst")
    assert done.map.parent == tmp_path / "in"
    assert done.map.stat().st_mode & 0o777 == 0o600
    assert done.sealed.path.stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.glob(".redacting*"))


def test_a_copy_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "out.tar.zst").write_bytes(b"there already")
    with pytest.raises(NotStored):
        redact(copied(UNPACKED[0], tmp_path / "in"), tmp_path / "out.tar.zst")
    assert (tmp_path / "out.tar.zst").read_bytes() == b"there already"


# Fifty things that must not come out again. Where one stands in several places, it is one pseudonym in all of them.
SECRETS = {
    "vm": "acmepayroll",
    "host": "hv07.frankfurt.acme-bank.example",
    "secret data": "bGV0bWVpbiBwbGVhc2U",
    "luks": "open-sesame-luks",
    "vnc password": "vncpw!42",
    "iscsi user": "chapuser9",
    "iscsi password": "chappw77",
    "iscsi host": "10.77.3.21",
    "iqn": "iqn.2019-04.com.acme-bank:payroll.lun7",
    "image path": "/srv/kunden/mueller-gmbh/lohn 2026.qcow2",
    "mac": "52:54:00:de:ad:77",
    "uuid": "6d1f0c7e-9d7a-4a53-8a5d-0a1b2c3d4e5f",
    "serial": "S4EVNX0R123456Z",
    "kernel argument": "token-in-append-line",
    "firmware string": "hunter2-in-fw-cfg",
    "smbios": "ACME-ASSET-4711",
    "ip6": "2a01:4f8:c17:b0f::2",
    "nbd host": "nbdstore.acme-bank.example",
    "export": "payroll-volume-9",
    "rbd pool": "acmepool1",
    "rbd image": "lohnbuch-2026",
    "ceph user": "cephclient7",
    "ceph key": "AQBHCbtT6APDHhAA5W00cBchwkQjh3dkKsyPjw==",
    "url user": "svcbackup",
    "url password": "Winter2026!",
    "xml title": "Lohnbuchhaltung der Acme Bank",
    "xml description": "ask Erika for the door code 9931",
    "xml graphics": "spicepw-9",
    "xml usage": "acme-ceph-secret-usage",
    "xml metadata": "owner-erika.musterfrau",
    "conf password": "$5$rounds=5000$abcdefgh$12345",
    "conf user": "ciadmin7",
    "conf ssh key": "AAAAC3NzaC1lZDI1NTE5AAAAIJx",
    "conf comment": "customer%20Mueller%20pays%20late",
    "conf domain": "intra.acme-bank.example",
    "conf nameserver": "10.77.3.53",
    "storage server": "nas-acme-7",
    "storage user": "smbuser8",
    "nfs server": "filer3.acme-bank.example",
    "nfs share": "lohnarchiv",
    "cifs share": "smb-kunde-x",
    "journal user": "erikam",
    "journal sentence": "door code is 9931",
    "journal token": "eyJhbGciOiJIUzI1NiJ9abcDEF123",
    "dmesg serial": "ZX81SERIAL0099",
    "dmesg mac": "3c:ec:ef:11:22:33",
    "dmesg host": "hv08.frankfurt.acme-bank.example",
    "log password": "qemu-log-pw-5",
    "email": "erika.musterfrau@acme-bank.example",
    "peer argument": "peer-cmdline-password-1",
    "tcp peer": "1503A8C0",
    "mount point": "/mnt/mueller_backup",
    "bearer": "AbCdEf0123456789GhIjKl",
    "home": "/home/emuster",
}


def planted(home: Path) -> Path:
    """Copy a real capture and plant every secret where it would really stand."""
    folder = copied(FIXTURES / "throttle-timer-7.2", home)
    s = SECRETS
    told = msgspec.json.decode((folder / layout.MANIFEST).read_bytes(), type=Manifest)
    replace = msgspec.structs.replace
    told = replace(
        told,
        host=replace(told.host, name=s["host"], boot_id=s["uuid"]),
        target=replace(told.target, name=s["vm"]),
        options=("capture", s["vm"], "--out", s["home"] + "/out"),
        steps=tuple(replace(step, why=f"{step.why}; {s['image path']} on {s['host']}") for step in told.steps),
        notes=(f"{s['home']}: did not answer",),
    )
    (folder / layout.MANIFEST).write_bytes(encode_manifest(told))
    words = [
        "/usr/bin/qemu-system-x86_64",
        *("-name", f"guest={s['vm']},debug-threads=on"),
        *("-uuid", s["uuid"]),
        *("-object", f"secret,id=sec0,data={s['secret data']}"),
        *("-object", f"secret,id=sec1,format=raw,data={s['luks']}"),
        *("-vnc", f":1,password={s['vnc password']}"),
        *("-drive", f"file={s['image path']},if=none,id=disk0,key-secret=sec1"),
        *("-drive", f"file=iscsi://{s['iscsi user']}%{s['iscsi password']}@{s['iscsi host']}/{s['iqn']}/1,id=d2"),
        *(
            "-drive",
            f"file=rbd:{s['rbd pool']}/{s['rbd image']}:id={s['ceph user']}:key={s['ceph key']}:mon_host={s['ip6']}",
        ),
        *(
            "-blockdev",
            msgspec.json.encode({"driver": "nbd", "server": {"host": s["nbd host"]}, "export": s["export"]}).decode(),
        ),
        *("-device", f"virtio-net-pci,mac={s['mac']}", "-device", f"scsi-hd,drive=disk0,serial={s['serial']}"),
        *("-append", f"root=/dev/vda token={s['kernel argument']}"),
        *("-fw_cfg", f"name=opt/x,string={s['firmware string']}", "-smbios", f"type=1,serial={s['smbios']}"),
        *("-drive", f"file=https://{s['url user']}:{s['url password']}@{s['nbd host']}/x.qcow2,id=d3"),
    ]
    (folder / layout.evidence(layout.WITNESS, layout.CMDLINE)).write_bytes("\0".join([*words, ""]).encode())
    xml = f"""<domain type='kvm'>
  <name>{s["vm"]}</name><uuid>{s["uuid"]}</uuid>
  <title>{s["xml title"]}</title>
  <description>{s["xml description"]}
on two lines</description>
  <metadata><x:owner>{s["xml metadata"]}</x:owner></metadata>
  <devices><disk type='network'><auth username='{s["ceph user"]}'><secret type='ceph' usage='{s["xml usage"]}'/></auth>
  <source protocol='rbd' name='{s["rbd pool"]}/{s["rbd image"]}'><host name='{s["nbd host"]}'/></source></disk>
  <interface type='bridge'><mac address='{s["mac"]}'/></interface>
  <graphics type='spice' passwd='{s["xml graphics"]}'/></devices></domain>
"""
    conf = f"""#{s["conf comment"]}
name: {s["vm"]}
ciuser: {s["conf user"]}
cipassword: {s["conf password"]}
sshkeys: ssh-ed25519%20{s["conf ssh key"]}%20{s["email"]}
searchdomain: {s["conf domain"]}
nameserver: {s["conf nameserver"]}
net0: virtio={s["mac"].upper()},bridge=vmbr0
smbios1: uuid={s["uuid"]},serial={s["smbios"]}
"""
    storage = f"""cifs: kunden
\tpath /mnt/pve/kunden
\tserver {s["storage server"]}
\tshare {s["cifs share"]}
\tusername {s["storage user"]}
"""
    sections = {"/etc/libvirt/qemu/x.xml": xml, "/etc/pve/qemu-server/102.conf": conf, "/etc/pve/storage.cfg": storage}
    host = folder / "evidence/host"
    (host / layout.VM_CONFIG).write_bytes(render(Section(name, text.encode()) for name, text in sections.items()))
    more = [
        Section(f"statvfs {s['mount point']}", b"{}\n"),
        Section(
            "/proc/9/mountinfo",
            f"40 1 0:50 / {s['mount point']} rw - nfs4 {s['nfs server']}:/{s['nfs share']} rw\n".encode(),
        ),
        Section(
            "/proc/8/mountinfo", f"41 1 0:51 / /mnt/a rw - cifs //{s['storage server']}/{s['cifs share']} rw\n".encode()
        ),
    ]
    with open(host / layout.HOST_FILES, "ab") as stream:
        stream.write(render(more))
    journal = f"""2026-11-20T10:00:00 {s["host"]} sshd[9]: Accepted key for {s["journal user"]} from {s["iscsi host"]}
2026-11-20T10:00:01 {s["host"]} note[9]: {s["journal sentence"]}
2026-11-20T10:00:02 {s["host"]} x[9]: I/O error, token {s["journal token"]} for user {s["journal user"]} at {s["email"]}
"""
    (host / layout.JOURNAL).write_bytes(render([Section("journalctl -n 300", journal.encode())]))
    (host / layout.DMESG).write_text(
        f"<3>[ 1.0] blk_update_request: I/O error, serial {s['dmesg serial']} Serial Number: {s['dmesg serial']}\n"
        f"<6>[ 1.1] e1000e 0000:00:19.0 eth0: {s['dmesg mac']} timeout\n"
        f"<6>[ 1.2] systemd[1]: Hostname set to <{s['dmesg host']}>.\n"
        f"<3>[ 1.3] nfs: server {s['nfs server']} not responding, timed out\n"
    )
    (host / layout.VM_LOG).write_text(
        f"starting up libvirt, hostname: {s['host']}\n"
        f"error: password={s['log password']} Authorization: Bearer {s['bearer']} failed\n"
        f"error: cannot open {s['image path']}\n"
    )
    sockets = folder / layout.evidence(layout.PROC_FDS, layout.SOCKETS)
    with open(sockets, "ab") as stream:
        stream.write(
            render(
                [
                    Section("peer/77/cmdline", f"x\0--password={s['peer argument']}\0".encode()),
                    Section("net/tcp", f"  1: 0100007F:1F90 {s['tcp peer']}:0CEA 01\n".encode()),
                ]
            )
        )
    with open(folder / layout.evidence(layout.WITNESS, layout.FDS), "ab") as stream:
        stream.write(render([Section("fd/99", s["image path"].encode()), Section("cwd", s["home"].encode())]))
    with open(folder / layout.evidence(layout.WITNESS, layout.MAPS), "ab") as stream:
        stream.write(f"7f0000000000-7f0000001000 rw-s 00000000 fe:01 77 {' ' * 20}{s['image path']}\n".encode())
    with open(folder / layout.evidence(layout.QUERY_BLOCK, layout.QMP), "ab") as stream:
        stream.write(
            msgspec.json.encode(
                {
                    "question": "x",
                    "answer": {
                        "filename": f'json:{{"file": "{s["image path"]}"}}',
                        "vnc": {"password": s["vnc password"]},
                    },
                }
            )
            + b"\n"
        )
    (folder / layout.CORE).write_bytes("".join(s.values()).encode())
    (folder / "evidence/host/unheard-of").write_bytes(b"whatever a newer autopsy stores")
    return folder


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    home = tmp_path_factory.mktemp("planted")
    done = redact(planted(home / "in"), home / "out.tar.zst")
    return done.sealed.path, everything(done.sealed.path)


def test_at_least_fifty_secrets_are_planted(tmp_path: Path) -> None:
    assert len(SECRETS) >= 50
    folder = planted(tmp_path / "in")
    there = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != layout.CORE)
    plain = there.replace(b"\\/", b"/")
    missing = [name for name, secret in SECRETS.items() if secret.encode() not in plain]
    assert missing == []


@pytest.mark.parametrize("name", SECRETS)
def test_a_planted_secret_does_not_come_out(hidden: tuple[Path, bytes], name: str) -> None:
    _, found = hidden
    secret = SECRETS[name].encode().lower()
    assert secret not in found.lower()
    last = Path(SECRETS[name]).name.encode().lower()
    assert len(last) < 6 or last not in found.lower()


def test_what_nobody_knows_is_left_out(hidden: tuple[Path, bytes]) -> None:
    path, found = hidden
    held = open_bundle(path).names()
    assert b"whatever a newer autopsy stores" not in found
    assert layout.CORE not in held
    assert {layout.REPORT, layout.DIAGNOSIS, layout.README} <= set(held)


def test_the_same_path_has_the_same_pseudonym_everywhere(hidden: tuple[Path, bytes]) -> None:
    bundle = open_bundle(hidden[0])
    links = {each.name: each.data for each in parse(bundle.read(layout.evidence(layout.WITNESS, layout.FDS)))}
    path = links["fd/99"]
    assert path.endswith(b".qcow2")
    assert path in bundle.read(layout.evidence(layout.WITNESS, layout.MAPS))
    assert path in bundle.read(layout.evidence(layout.WITNESS, layout.CMDLINE))


def test_the_map_tells_its_owner_what_was_what(tmp_path: Path) -> None:
    done = redact(planted(tmp_path / "in"), tmp_path / "out.tar.zst")
    table = msgspec.json.decode(done.map.read_bytes())
    manifest = open_bundle(done.sealed.path).manifest
    assert table["host"][manifest.host.name] == SECRETS["host"]
    assert table["vm"][manifest.target.name] == SECRETS["vm"]


def test_the_command_tells_where_copy_and_map_are(tmp_path: Path) -> None:
    bundle = copied(UNPACKED[0], tmp_path / "in")
    done = subprocess.run(
        [sys.executable, "-m", "autopsy", "redact", bundle, "-o", tmp_path / "out.tar.zst"],
        capture_output=True,
        text=True,
        check=False,
        cwd=lab.HOUSE,
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "out.tar.zst") in done.stdout
    assert "redaction.json" in done.stderr


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=300))
def test_lines_stay_where_they_are(text: str) -> None:
    data = text.encode("utf-8", "surrogatepass") if text.isascii() else text.encode("utf-8", "replace")
    for file in ("maps", "x.json", "dmesg.txt", "vm-config.txt", "tasks.txt"):
        hide = Pseudonyms()
        for _ in range(2):
            made = redacted(f"evidence/host/{file}", data, hide, bool)
            hide.learned()
        if not file.endswith(".json"):
            assert made.count(b"\n") == data.count(b"\n")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_never_raise(data: bytes) -> None:
    hide = Pseudonyms()
    for file in ("maps", "x.json", "x.jsonl", "dmesg.txt", "vm-config.txt", "tasks.txt", "cmdline"):
        redacted(f"evidence/host/{file}", data, hide, bool)
    command_line(data, hide)
    hide.learned()
    hide.text(data.decode("utf-8", "replace"))


@given(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=6, max_size=20))
def test_a_name_once_learned_is_gone_from_every_text(name: str) -> None:
    hide = Pseudonyms()
    hide.name("vm", f"x9{name}")
    hide.learned()
    assert f"x9{name}".lower() not in hide.text(f"machine-qemu-1-x9{name}.scope, x9{name.upper()}: x9{name}").lower()
