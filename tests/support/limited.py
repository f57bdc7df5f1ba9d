"""A limit that the host puts on a VM's disk I/O, by a control group."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from support import lab


@contextmanager
def io_limited(pid: int, image: Path, rate: int) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Let a process write `rate` bytes a second to the device that `image` lies on: the group, and what lifts it."""
    lab.need_root()
    device = os.stat(image).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    older = Path("/sys/fs/cgroup/blkio")
    if (older / "blkio.throttle.write_bps_device").exists():
        root, file, limit, none = older, "blkio.throttle.write_bps_device", f"{number} {rate}", f"{number} 0"
    elif "io" in Path("/sys/fs/cgroup/cgroup.controllers").read_text().split():
        root, file, limit, none = older.parent, "io.max", f"{number} wbps={rate}", f"{number} wbps=max"
        (root / "cgroup.subtree_control").write_text("+io")
    else:
        lab.missing("no control group limits I/O on this host")
    group = root / f"autopsy-{secrets.token_hex(4)}"
    group.mkdir()

    def lift() -> None:
        (group / file).write_text(none)

    try:
        (group / file).write_text(limit)
        (group / "cgroup.procs").write_text(str(pid))
        yield group, lift
    finally:
        lift()
        if Path(f"/proc/{pid}").exists():
            (root / "cgroup.procs").write_text(str(pid))
        lab.until("the cgroup is empty", lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()
