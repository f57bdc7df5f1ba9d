"""Programs that serve a device are found by the command line and the sockets that lead to them."""

from __future__ import annotations

import pytest

from autopsy.facts import device_backends
from autopsy.facts.cite import Cite, Known
from autopsy.facts.command_line import CommandLine, parse
from autopsy.facts.model.facts import SocketFact

HERE = Cite("evidence/proc.fds/sockets.json")


def socket(remote: str, state: str = "ESTAB", fd: int = 9) -> SocketFact:
    return SocketFact(
        fd=fd,
        inode=fd,
        family="unix",
        state=state,
        local="",
        remote=remote,
        received_queue=0,
        send_queue=0,
        peers=(),
        cite=HERE,
    )


def line(chardev: str) -> CommandLine:
    return CommandLine(
        devices=(parse("vhost-user-blk-pci,id=vd0,chardev=c0", "driver"), parse("virtio-blk-pci,id=vd1", "driver")),
        chardevs=(parse(chardev, "backend"),),
        tpmdevs=(parse("emulator,id=tpm0,chardev=c0", "type"),),
    )


@pytest.mark.parametrize("remote", ["/run/vhost/disk.sock", "disk.sock", "/other/mount/disk.sock"])
def test_a_back_end_is_found_however_its_path_is_spelt(remote: str) -> None:
    found = device_backends.gather_back_ends(
        line("socket,id=c0,path=/run/vhost/disk.sock"), Known((socket(remote),), HERE)
    )
    assert [(each.kind, each.device, len(each.sockets)) for each in found] == [
        ("vhost-user", "vd0", 1),
        ("swtpm", "tpm0", 1),
    ]


@pytest.mark.parametrize(
    ("remote", "state"), [("", "ESTAB"), ("/run/vhost/otherdisk.sock", "ESTAB"), ("/run/vhost/disk.sock", "LISTEN")]
)
def test_a_socket_that_leads_elsewhere_is_not_its(remote: str, state: str) -> None:
    found = device_backends.gather_back_ends(
        line("socket,id=c0,path=/run/vhost/disk.sock"), Known((socket(remote, state),), HERE)
    )
    assert [each.sockets for each in found] == [(), ()]


def test_a_chardev_that_is_not_on_the_command_line_is_no_helper() -> None:
    assert device_backends.gather_back_ends(line("socket,id=c1,path=/x"), Known((), HERE)) == ()
