"""QEMU's command line, taken apart as QEMU does."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopsy.bundle.manifest import MonitorSocket
from autopsy.linux.unix_sockets import Listener, parse_listeners
from autopsy.target.command_line import (
    DAEMON_FLAGS,
    DAEMON_OPTIONS,
    FLAGS,
    Option,
    daemon_options,
    disks,
    last,
    options,
    settings,
    vm_name,
    words,
)
from autopsy.target.monitors import told


def monitors(line: str) -> list[tuple[str, str, str]]:
    return [
        (each.protocol, each.transport, each.address)
        for each in told(options(("qemu", *line.split(" "))) if line else ())
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("-qmp unix:/a,server=on,wait=off", [("qmp", "unix", "/a")]),
        ("-qmp unix:/a,server,nowait", [("qmp", "unix", "/a")]),
        ("--qmp unix:path=/a,server=on", [("qmp", "unix", "/a")]),
        ("-qmp-pretty unix:/a,,b,server=on", [("qmp", "unix", "/a,b")]),
        ("-qmp tcp:localhost:4444,server=on", [("qmp", "tcp", "localhost:4444")]),
        ("-qmp tcp::4444,server", [("qmp", "tcp", ":4444")]),
        ("-qmp stdio", [("qmp", "stdio", "stdio")]),
        ("-monitor stdio", [("hmp", "stdio", "stdio")]),
        ("-monitor pty", [("hmp", "pty", "pty")]),
        ("-monitor vc:80Cx24C", [("hmp", "other", "vc:80Cx24C")]),
        ("-monitor none", []),
        ("-monitor null", []),
        ("-serial mon:stdio", [("hmp", "stdio", "stdio")]),
        ("-serial mon:telnet:127.0.0.1:99,server", [("hmp", "tcp", "127.0.0.1:99")]),
        ("-serial stdio", []),
        ("-append -qmp -kernel unix:/a", []),
        ("-nographic -qmp unix:/a", [("qmp", "unix", "/a")]),
        ("-chardev socket,id=m,path=/a,server=on -mon chardev=m,mode=control", [("qmp", "unix", "/a")]),
        ("-mon m,mode=control,pretty=on -chardev socket,id=m,path=/a", [("qmp", "unix", "/a")]),
        ("-mon chardev=m -chardev socket,path=/a,id=m", [("hmp", "unix", "/a")]),
        ("-object monitor-qmp,id=q,chardev=m -chardev socket,id=m,path=/a,server=on", [("qmp", "unix", "/a")]),
        ("-object monitor-hmp,id=h,chardev=m -chardev socket,id=m,path=/a,server=on", [("hmp", "unix", "/a")]),
        (
            '-chardev socket,id=m,path=/a,server=on -object {"qom-type":"monitor-qmp","id":"q","chardev":"m"}',
            [("qmp", "unix", "/a")],
        ),
        ("-object iothread,id=io0 -chardev socket,id=io0,path=/a,server=on", []),
        ("-chardev socket,id=m,fd=22,server=on,wait=off -mon chardev=m,mode=control", [("qmp", "fd", "22")]),
        ("-chardev socket,id=m,path=a,abstract=on -mon chardev=m,mode=control", [("qmp", "unix", "@a")]),
        ("-chardev socket,id=m,host=::1,port=1 -mon m,mode=control", [("qmp", "tcp", "::1:1")]),
        ("-chardev pty,id=m -qmp chardev:m", [("qmp", "pty", "pty")]),
        ("-chardev vc,id=m -mon m", [("hmp", "other", "vc")]),
        ("-mon nobody,mode=control", []),
        (
            (
                '-chardev {"id":"m","backend":{"type":"socket","data":{"addr":{"type":"unix","data":{"path":"/a"}}}}}'
                ' -mon {"chardev":"m","mode":"control"}'
            ),
            [("qmp", "unix", "/a")],
        ),
        ('-chardev {"id":"m","backend":"socket","path":"/a"} -mon {"chardev":"m"}', [("hmp", "unix", "/a")]),
        ("-chardev {broken -mon m", []),
        ("", []),
    ],
)
def test_a_monitor_is_told_in_every_form(line: str, expected: list[tuple[str, str, str]]) -> None:
    assert monitors(line) == expected


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("-name web1", "web1"),
        ("-name guest=web1,debug-threads=on", "web1"),
        ("-name web1,debug-threads=on,process=x", "web1"),
        ("-name a,,b,debug-threads=on", "a,b"),
        ("-name old -name guest=new", "new"),
        ("-append -name -S", ""),
        ("-m 1", ""),
    ],
)
def test_a_vms_name_is_read_as_qemu_reads_it(line: str, name: str) -> None:
    assert vm_name(options(("qemu", *line.split(" ")))) == name


def test_disks_are_counted_without_drives_that_are_none() -> None:
    line = (
        "-drive file=a,if=none,id=a -device virtio-blk-pci,drive=a -drive file=b,if=virtio -hda c "
        '-device {"driver":"scsi-hd","drive":"d"} -drive file=e,media=cdrom -cdrom f -device scsi-cd '
        "-drive if=pflash,file=g -device nvme,serial=1 -device nvme-subsys -device virtio-net-pci"
    )
    assert disks(options(("qemu", *line.split(" ")))) == 5


def test_every_flag_of_this_qemu_is_known() -> None:
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        pytest.skip("qemu-system-x86_64 is not here")
    said = subprocess.run([qemu, "-h"], capture_output=True, text=True, check=True).stdout
    alone = re.findall(r"^--?([\w-]+)(?: {2,}|\t|$)", said, re.MULTILINE)
    with_argument = {"append", "dtb", "fw_cfg", "semihosting-config", "preconfig"}  # described on the next line
    assert {name for name in alone if name not in with_argument} <= FLAGS


def test_words_keep_what_is_empty_and_what_is_no_text() -> None:
    assert words(b"qemu\0-append\0\0-name\0\xff\0") == ("qemu", "-append", "", "-name", "\udcff")


@given(st.dictionaries(st.from_regex(r"[a-z]{2,8}", fullmatch=True), st.text(min_size=1), max_size=5))
def test_settings_are_read_back_as_they_were_escaped(given_settings: dict[str, str]) -> None:
    line = ",".join(f"{key}={value.replace(',', ',,')}" for key, value in given_settings.items())
    if not line.startswith("{"):
        assert settings(line) == given_settings


@given(st.lists(st.text(), max_size=12))
def test_no_command_line_raises(arguments: list[str]) -> None:
    given_options = options(arguments)
    told(given_options)
    disks(given_options)
    vm_name(given_options)
    last(given_options, "pidfile")


@given(st.text())
def test_no_json_raises(text: str) -> None:
    settings("{" + text)
    settings('{"a":' * 3000)


HEADER = "Num       RefCount Protocol Flags    Type St Inode Path\n"


def test_listeners_are_told_by_flag_and_type() -> None:
    table = (
        HEADER + "00000000ea7bb8fa: 00000002 00000000 00010000 0001 01 11818 /run/a b\n"
        "00000000ea7bb8fb: 00000002 00000000 00010000 0001 01 11819 @abstract\n"
        "00000000ea7bb8fc: 00000003 00000000 00000000 0001 03 11820 /run/a b\n"
        "00000000ea7bb8fd: 00000002 00000000 00010000 0005 01 11821 /seqpacket\n"
        "00000000ea7bb8fe: 00000002 00000000 00010000 0001 01 11822\n"
    )
    assert parse_listeners(table.encode()) == (
        Listener(11818, "/run/a b"),
        Listener(11819, "@abstract"),
        Listener(11822, ""),
    )


def test_a_path_cannot_forge_another_listener() -> None:
    row = "00000000ea7bb8fa: 00000002 00000000 00010000 0001 01 {} {}\n"
    table = HEADER + row.format(5, "/vm") + row.format(6, "/x\n" + row.format(5, "/forged").strip())
    assert 5 not in [each.inode for each in parse_listeners(table.encode())]


@given(st.binary())
def test_no_table_of_sockets_raises(table: bytes) -> None:
    parse_listeners(table)


def test_a_monitor_without_an_address_is_left_out() -> None:
    assert MonitorSocket(protocol="hmp", transport="other", address="none") not in told(
        options(("qemu", "-monitor", "none"))
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--monitor chardev=c0 --chardev socket,id=c0,path=/a,server=on", [("qmp", "unix", "/a")]),
        ("--chardev=socket,id=c0,path=/a,server=on --monitor=c0", [("qmp", "unix", "/a")]),
        ("--mon c0 --ch socket,id=c0,path=/a,server=on --daemonize", [("qmp", "unix", "/a")]),
        ("--daemonize --monitor c0 --chardev stdio,id=c0", [("qmp", "stdio", "stdio")]),
        ("--export type=nbd,id=e,node-name=--monitor", []),
    ],
)
def test_a_storage_daemons_monitor_is_found(line: str, expected: list[tuple[str, str, str]]) -> None:
    found = told(daemon_options(("qemu-storage-daemon", *line.split(" "))))
    assert [(each.protocol, each.transport, each.address) for each in found] == expected


def test_a_storage_daemons_options_are_taken_as_getopt_takes_them() -> None:
    words = ("qsd", "-V", "--export=type=nbd,id=e", "-T", "x", "image", "--", "--monitor", "c0")
    assert daemon_options(words) == (Option("V"), Option("export", "type=nbd,id=e"), Option("T", "x"))


@pytest.mark.skipif(shutil.which("qemu-storage-daemon") is None, reason="no qemu-storage-daemon here")
def test_every_option_of_the_storage_daemon_here_is_known() -> None:
    text = subprocess.run(["qemu-storage-daemon", "--help"], capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"--([a-z][a-z-]+)", text)) - {"ascii"} <= set(DAEMON_OPTIONS)
    assert {name for name in DAEMON_FLAGS if len(name) > 1} < set(DAEMON_OPTIONS)
