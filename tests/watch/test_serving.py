"""Scrapes are answered from the last round, whoever else hangs on the address; what serves may die."""

from __future__ import annotations

import gc
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from autopsy.errors import NotPermitted, UsageError
from autopsy.watch import ring, state
from autopsy.watch.model import StallKind
from autopsy.watch.serving import address, http, outlet, outlets, textfile
from autopsy.watch.serving.address import TcpAddress, UnixAddress, parse
from support.watching import rounds

pytest.importorskip("prometheus_client")

ASK = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
WELL = rounds.of(rounds.vm())
STUCK = rounds.of(rounds.vm(stalled=StallKind.DISK, stalls={StallKind.DISK: 1}))


@pytest.fixture(autouse=True)
def run_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the watch a /run of its own."""
    run = tmp_path_factory.mktemp("run")
    monkeypatch.setattr(ring, "RUN", run)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(run))
    return ring.run_folder()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), 5)


def answer(connection: socket.socket, asked: bytes = ASK) -> bytes:
    with connection:
        connection.sendall(asked)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def scrape(port: int) -> bytes:
    return answer(connected(port))


def until(true: Callable[[], bool], seconds: float = 10.0) -> bool:
    give_up = time.monotonic() + seconds
    while not true():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.02)
    return True


def test_a_scrape_shows_the_last_round_and_none_before_there_is_one() -> None:
    port = free_port()
    with outlets.opened(listen=f"127.0.0.1:{port}") as opened:
        assert scrape(port).startswith(b"HTTP/1.1 503")
        opened.publish(WELL)
        assert until(lambda: scrape(port).startswith(b"HTTP/1.1 200"))
        opened.publish(STUCK)
        assert until(lambda: b'autopsy_vm_stalled{kind="disk",vm="web1"} 1.0' in scrape(port))
        assert answer(connected(port), b"HEAD /metrics HTTP/1.1\r\n\r\n").endswith(b"\r\n\r\n")
        for asked, status in (
            (b"POST /metrics HTTP/1.1\r\n\r\n", b"501"),
            (b"GET /../etc/shadow HTTP/1.1\r\n\r\n", b"404"),
            (b"\x16\x03\x01 hello\r\n\r\n", b"400"),
            (b"GET /metrics HTTP/1.1\r\n" + b"a: b\r\n" * 4000, b"431"),
        ):
            assert answer(connected(port), asked)[9:12] == status
    with pytest.raises(ConnectionRefusedError):
        connected(port)


def test_figures_of_a_watch_that_does_not_come_round_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "STALE_SECONDS", 0.3)
    port = free_port()
    with outlets.opened(listen=f"127.0.0.1:{port}") as opened:
        opened.publish(WELL)
        assert until(lambda: b"does not come round" in scrape(port))
        opened.publish(WELL)
        assert until(lambda: scrape(port).startswith(b"HTTP/1.1 200"))


def test_scrapers_that_say_nothing_or_read_nothing_keep_no_other_from_its_answer() -> None:
    port = free_port()
    many = rounds.of(*(rounds.vm(f"vm{number}", start_ticks=number) for number in range(80)))
    with outlets.opened(listen=f"127.0.0.1:{port}") as opened, ExitStack() as scrapers:
        opened.publish(many)
        _silent, deaf = ([scrapers.enter_context(connected(port)) for _ in range(40)] for _ in range(2))
        for each in deaf:
            each.sendall(ASK)
        for _ in range(3):
            assert scrape(port).count(b"autopsy_vm_info{") == 80


def test_a_scraper_that_dawdles_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "SCRAPE_SECONDS", 0.3)
    port = free_port()
    with outlets.opened(listen=f"127.0.0.1:{port}"), connected(port) as slow:
        slow.sendall(b"GET /metrics")
        assert slow.recv(1) == b""


def test_what_serves_may_be_killed_and_is_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlet, "AGAIN_SECONDS", 0.0)
    port = free_port()
    with outlets.opened(listen=f"127.0.0.1:{port}") as opened:
        process = opened._outlets[0]._child
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)

        def serves() -> bool:
            opened.publish(WELL)
            try:
                return scrape(port).startswith(b"HTTP/1.1 200")
            except OSError:
                return False

        assert until(serves)
        assert opened._outlets[0].deaths == 1


def test_what_serves_and_is_stopped_costs_the_watch_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlet, "LAST_SECONDS", 0.1)
    with outlets.opened(listen=f"127.0.0.1:{free_port()}") as opened:
        process = opened._outlets[0]._child
        assert process is not None
        os.kill(process.pid, signal.SIGSTOP)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(300):
            opened.publish(WELL)  # one that waited would wait for ever
        assert len(os.listdir("/proc/self/fd")) == before


def test_the_watchs_death_ends_what_serves() -> None:
    port = free_port()
    words = (
        "import time\nfrom autopsy.watch.serving.outlets import opened\n"
        f"with opened(listen='127.0.0.1:{port}'):\n    print('up', flush=True)\n    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", words], stdout=subprocess.PIPE) as watch:
        assert watch.stdout is not None
        assert watch.stdout.readline() == b"up\n"
        connected(port).close()
        watch.kill()

    def gone() -> bool:
        try:
            connected(port).close()
        except ConnectionRefusedError:
            return True
        return False

    assert until(gone)


def test_what_serves_has_given_up_every_right_of_roots() -> None:
    with outlets.opened(listen=f"127.0.0.1:{free_port()}") as opened:
        process = opened._outlets[0]._child
        assert process is not None
        status = Path(f"/proc/{process.pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == 0
    assert fields["NoNewPrivs"] == "1"


@pytest.mark.parametrize(
    "words",
    ["", "9719", ":9719", "0.0.0.0:9719", "[::]:9719", "192.0.2.1:9719", "example.org:1", "127.0.0.1:99999", "unix:x"],
)
def test_an_address_that_is_none_or_that_other_hosts_reach_is_refused(words: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse(words, anywhere=False)
    assert "--listen" in refused.value.remedy


def test_an_address_of_this_host_is_taken_and_another_where_the_configuration_says_so() -> None:
    assert parse("127.0.0.1:9719", anywhere=False) == TcpAddress("127.0.0.1", 9719)
    assert parse("localhost:9719", anywhere=False) == TcpAddress("127.0.0.1", 9719)
    assert parse("[::1]:9719", anywhere=False) == TcpAddress("::1", 9719)
    assert parse("192.0.2.1:9719", anywhere=True) == TcpAddress("192.0.2.1", 9719)
    assert parse("unix:/run/x.sock", anywhere=False) == UnixAddress(Path("/run/x.sock"))


def test_an_address_that_is_taken_is_told_at_once() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(NotPermitted, match="in use"), outlets.opened(listen=f"127.0.0.1:{other.getsockname()[1]}"):
            pass


def test_a_socket_with_a_path_is_for_its_group_alone_and_replaces_none_that_is_served(tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"

    def ask() -> bytes:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            return answer(connection)

    with outlets.opened(listen=f"unix:{path}") as opened:
        opened.publish(WELL)
        assert until(lambda: ask().startswith(b"HTTP/1.1 200"))
        assert stat.S_IMODE(path.lstat().st_mode) == 0o660
        with pytest.raises(NotPermitted, match="in use"), outlets.opened(listen=f"unix:{path}"):
            pass
    with outlets.opened(listen=f"unix:{path}"):  # what it left is its own, and nobody's any more
        assert ask().startswith(b"HTTP/1.1 503")
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(NotPermitted, match="in use"), outlets.opened(listen=f"unix:{path}"):
        pass
    path.unlink()
    tmp_path.chmod(0o777)
    with pytest.raises(NotPermitted, match="others may write"), outlets.opened(listen=f"unix:{path}"):
        pass


def test_the_textfile_is_whole_readable_for_all_and_goes_with_the_watch(tmp_path: Path) -> None:
    old = tmp_path / f".{textfile.NAME}.0123abcd.half"
    old.touch()
    file = tmp_path / textfile.NAME
    with outlets.opened(textfile_folder=tmp_path) as opened:
        opened.publish(WELL)
        assert until(file.exists)
        assert stat.S_IMODE(file.stat().st_mode) == 0o644
        opened.publish(STUCK)  # told at once, long before the quarter of a minute is over
        assert until(lambda: b'autopsy_vm_stalled{kind="disk",vm="web1"} 1.0' in file.read_bytes())
        assert [path.name for path in tmp_path.iterdir()] == [textfile.NAME]
    assert list(tmp_path.iterdir()) == []


def test_a_textfile_folder_of_another_user_or_behind_a_link_is_refused(tmp_path: Path) -> None:
    others = tmp_path / "others"
    others.mkdir()
    os.chown(others, 12345, 12345)
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    for folder, why in (
        (others, "user 12345 made it"),
        (link, "Not a directory"),
        (tmp_path / "absent", "No such file"),
    ):
        with pytest.raises(NotPermitted, match=why), outlets.opened(textfile_folder=folder):
            pass


def test_a_link_in_the_place_of_the_textfile_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / textfile.NAME).symlink_to(victim)
    with outlets.opened(textfile_folder=folder) as opened:
        opened.publish(WELL)
        assert until(lambda: not (folder / textfile.NAME).is_symlink())
    assert victim.read_text() == "kept"


def test_without_the_client_whoever_wants_metrics_is_told_what_to_install_and_others_miss_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(outlets, "find_spec", lambda _: None)
    for asked in ({"listen": "127.0.0.1:9719"}, {"textfile_folder": tmp_path}):
        with pytest.raises(UsageError) as told, outlets.opened(**asked):  # type: ignore[arg-type]  # of both kinds
            pass
        assert "extra `watch`" in told.value.remedy
    with outlets.opened() as opened:
        opened.publish(WELL)


def test_the_kernel_keeps_connections_until_we_come_round() -> None:
    with address.bind(TcpAddress("127.0.0.1", 0)) as listener, ExitStack() as scrapers:
        port = listener.getsockname()[1]
        for _ in range(address.WAITING):
            scrapers.enter_context(connected(port))


def test_an_address_that_cannot_be_taken_leaves_no_socket_behind() -> None:
    with address.bind(TcpAddress("127.0.0.1", 0)) as listener:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            with pytest.raises(OSError, match="in use"):
                address.bind(TcpAddress("127.0.0.1", listener.getsockname()[1]))
        gc.collect()  # one that was not closed warns then
        assert len(os.listdir("/proc/self/fd")) == before


def test_the_last_round_is_there_for_ps_while_the_watch_is_and_only_if_its_folder_is_ours(run_folder: Path) -> None:
    stuck = replace(STUCK, at=time.time())
    assert state.last_round() is None
    with outlets.opened() as opened:
        opened.publish(stuck)
        assert state.last_round() == stuck
        assert stat.S_IMODE((run_folder / state.FILE).stat().st_mode) == 0o600
        opened.publish(replace(STUCK, at=time.time() - 2 * state.FRESH_SECONDS))
        assert state.last_round() is None  # it does not come round any more
        opened.publish(stuck)
        run_folder.chmod(0o777)
        assert state.last_round() is None
        run_folder.chmod(0o700)
        (run_folder / state.FILE).write_bytes(b"{}")
        assert state.last_round() is None
        opened.publish(stuck)
    assert not (run_folder / state.FILE).exists()
