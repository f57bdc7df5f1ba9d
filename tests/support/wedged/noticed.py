"""The wedges that the watch is to notice, each with what it may be called."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

from autopsy.watch.model import StallKind
from support import lab
from support.wedged import stacked, wedges, wedges_apart, wedges_beyond, wedges_disks, wedges_found
from support.wedged.wedges import Stuck

Wedge = Callable[[lab.Build], AbstractContextManager[Stuck]]
REQUESTS = {StallKind.DISK, StallKind.REQUEST}
LOOP = {StallKind.MAIN_LOOP}
HOST = {StallKind.HOST}

# Where QEMU drains for one that stands, either shows: the requests, or a main loop that waits for them alone.
WEDGES: tuple[tuple[str, Wedge, set[StallKind]], ...] = (
    ("limit", wedges_disks.throttled, REQUESTS),
    ("limit-node", wedges_disks.throttle_node, REQUESTS),
    ("limit-of-writes", wedges_disks.writes_throttled_while_reads_flow, REQUESTS),
    ("two-in-a-group", wedges_apart.two_in_one_group, REQUESTS),
    ("nbd-silent", wedges_disks.nbd_stopped, REQUESTS),
    ("nbd-drain", partial(wedges_disks.nbd_stopped, stopping=True), REQUESTS | LOOP),
    ("nbd-killed", wedges_disks.nbd_killed, REQUESTS),
    ("frozen-threads", partial(wedges_disks.frozen, engine="aio=threads"), REQUESTS),
    ("frozen-native", partial(wedges_disks.frozen, engine="aio=native,cache.direct=on"), LOOP),
    ("frozen-uring", partial(wedges_disks.frozen, engine="aio=io_uring"), REQUESTS),
    ("frozen-iothread", partial(wedges_disks.frozen, engine="aio=threads", iothread=True), REQUESTS),
    ("frozen-behind-links", wedges_beyond.frozen_behind_links, REQUESTS),
    ("loop-on-fuse", stacked.ext4_on_loop_on_fuse, HOST),
    ("loop-device", wedges_found.loop_device, HOST),
    ("fuse", wedges_disks.fuse_stopped, REQUESTS),
    ("fuse-added", wedges_disks.added_from_stopped_fuse, LOOP),
    ("blkdebug-drain", wedges_disks.stop_over_blkdebug, REQUESTS | LOOP),
    ("null", partial(wedges_disks.null_with_latency, driver="null-co"), REQUESTS),
    ("backing", wedges_disks.backing_stalled_while_others_flow, REQUESTS),
    ("mirror", wedges_apart.mirror_at_a_limit, REQUESTS),
    ("connecting", wedges.connecting, LOOP),
    ("pipe-unread", wedges.pipe_unread, LOOP),
    ("back-end", partial(wedges.back_end_stopped, stopping=True), LOOP),
)
