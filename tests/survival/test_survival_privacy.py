"""What a capture never takes: the guest's memory, QEMU's environment."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from autopsy.bundle.archive import members
from support import lab
from support.surviving import _every_capture_ends, capture  # noqa: F401 - a fixture
from tests.capture.freeze.test_freeze import SECRET, guest_wrote, write_firmware

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]

BACKENDS = {
    "anon": "memory-backend-ram,id=m,size=64M",
    "memfd": "memory-backend-memfd,id=m,size=64M",
    "hugetlbfs": "memory-backend-memfd,id=m,size=64M,hugetlb=on,hugetlbsize=2M",
}
POOL = Path("/proc/sys/vm/nr_hugepages")


@contextlib.contextmanager
def huge_pages(number: int) -> Iterator[None]:
    """Have that many huge pages for a while; the test is skipped on a host that cannot spare them."""
    lab.need_root()
    before = POOL.read_text()
    try:
        POOL.write_text(str(int(before) + number))
        if int(POOL.read_text()) < int(before) + number:
            pytest.skip("this host has no room for huge pages")
        yield
    finally:
        POOL.write_text(before)


def everything(bundle: Path) -> Iterator[tuple[str, bytes]]:
    for each in members(bundle):
        data = b"".join(each.parts())
        yield each.name, data
        if each.name.endswith(".zst"):
            yield each.name, zstandard.ZstdDecompressor().decompressobj().decompress(data)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_of_the_guest_s_memory_is_in_a_bundle(backend: str, tmp_path: Path) -> None:
    with (
        huge_pages(40) if backend == "hugetlbfs" else contextlib.nullcontext(),
        lab.folder() as folder,
    ):
        write_firmware(folder / "rom")
        with lab.qemu(
            "7.2",
            *("-object", BACKENDS[backend], "-machine", "memory-backend=m", "-bios", str(folder / "rom")),
            accelerate=lab.KVM if lab.kvm_works() else lab.TCG,
            boots=True,
        ) as running:
            lab.until("the guest has written", lambda: guest_wrote(running.pid, 64))
            done = capture(running.pid, tmp_path, "--fast")
            assert done.end() == 0, done.story
            assert done.outcomes()["freeze"] == "Collected"
    assert [name for name, data in everything(done.bundle) if SECRET in data] == []


def test_qemu_s_environment_is_not_in_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = secrets.token_hex(12)
    monkeypatch.setenv("QEMU_PLANTED_SECRET", secret)
    with lab.qemu("7.2") as running:
        monkeypatch.delenv("QEMU_PLANTED_SECRET")
        assert secret.encode() in Path(f"/proc/{running.pid}/environ").read_bytes()
        done = capture(running.pid, tmp_path, "--fast")
        assert done.end() == 0, done.story
    assert [name for name, data in everything(done.bundle) if secret.encode() in data] == []
