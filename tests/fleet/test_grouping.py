"""Captures of one mechanism are known by it, whatever build of QEMU they are of."""

from __future__ import annotations

import pytest

from autopsy.bundle.records import Frame
from autopsy.fleet.grouping import stacks
from autopsy.fleet.grouping.frames import spelled, spelled_stack
from support import lab
from support.built import fleets


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("bdrv_co_drain.lto_priv.0", "bdrv_co_drain"),
        ("aio_poll.constprop.0.isra.3", "aio_poll"),
        ("virtio_blk_handle_vq.part.0.cold", "virtio_blk_handle_vq"),
        ("bdrv_drained_begin.llvm.1234567890", "bdrv_drained_begin"),
        ("__GI___poll", "poll"),
        ("__poll", "poll"),
        ("__GI___pthread_mutex_lock", "pthread_mutex_lock"),
        ("___pthread_mutex_lock", "pthread_mutex_lock"),
        ("pthread_cond_wait@@GLIBC_2.3.2", "pthread_cond_wait"),
        ("__libc_read", "read"),
        ("__pread64_nocancel", "pread"),
        ("__GI_ppoll", "ppoll"),
        ("qemu_poll_ns", "qemu_poll_ns"),
        ("_nocheck__trace_x", "_nocheck__trace_x"),
        ("start_thread", ""),
        ("__syscall_cancel_arch", ""),
        ("<signal handler called>", ""),
    ],
)
def test_a_function_has_one_name_in_every_build(name: str, plain: str) -> None:
    assert spelled(name) == plain
    assert spelled(plain) == plain


def test_a_function_and_the_copy_that_it_calls_stand_once() -> None:
    assert spelled_stack(["__GI___poll", "aio_poll.part.0", "aio_poll", "clone3"]) == ("poll", "aio_poll")


def test_a_stack_without_names_is_known_by_build_id_and_offsets() -> None:
    def frames(base: int, build: str) -> tuple[tuple[Frame, ...], dict[str, str]]:
        return (
            Frame(pc=base + 0x10, module="/a/qemu", offset=0x10),
            Frame(pc=base + 0x99, module="/a/qemu", offset=0x99),
        ), {"/a/qemu": build}

    one, its = frames(0x1000, "aa")
    other, likewise = frames(0x77000, "aa")
    assert stacks.raw([one], its) == stacks.raw([other], likewise) != ()
    assert stacks.raw([one], its) != stacks.raw([one], {"/a/qemu": "bb"})
    assert stacks.named([one]) == ()


def test_one_mechanism_is_one_cluster_with_and_without_symbols(tmp_path: object) -> None:
    into = fleets.index(
        f"{tmp_path}/index",
        *(
            lab.HOUSE / "fixtures" / f"{name}{build}"
            for name in ("throttle-deadlock-10.0.2", "frozen-io-uring-10.0.2", "nbd-silent-10.0.2")
            for build in ("", "-debug")
        ),
    )
    found = fleets.rows(
        into, "SELECT signature, count(DISTINCT cluster) AS n, count(*) AS of FROM diagnoses GROUP BY 1"
    )
    assert sorted((row["signature"], row["n"], row["of"]) for row in found) == [
        ("host-fs-frozen", 1, 2),
        ("nbd-silent", 1, 2),
        ("throttle-lock-self-deadlock", 1, 2),
    ]
