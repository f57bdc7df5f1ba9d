"""Bundles whose reports are looked at, and a reader for what a report holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

from autopsy.bundle import records
from support.built import evidence as e

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
STORED = tuple(sorted(path.parent for path in FIXTURES.glob("*/bundle.tar.zst")))
HOSTILE = "x\u202egnp.<script>alert(1)</script>\n\x1b[31m`|*_[a](https://example.org)"


@dataclass(slots=True)
class Seen(HTMLParser):
    """What a browser would find in a page: ids, links within, and every tag with its attributes."""

    ids: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        HTMLParser.__init__(self)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append((tag, found))
        if "id" in found:
            self.ids.append(found["id"])
        if tag == "a" and found.get("href", "").startswith("#"):
            self.links.append(found["href"][1:])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def seen(page: str) -> Seen:
    found = Seen()
    found.feed(page)
    return found


def hostile() -> e.Case:
    """A throttle deadlock in a VM whose owner chose every name to do harm."""
    case = e.Case(version=HOSTILE)
    case.idle_threads(vcpus=2)
    mine = e.PID + 50
    case.thread(
        mine,
        HOSTILE,
        syscall="202 0x55d000aa0010 0x80 0x2 0x0 0x0 0x0 0x7f0000000000 0x7f0000000000",
        stack=(HOSTILE, "futex_wait"),
        frames=("__lll_lock_wait", "pthread_mutex_lock", "throttle_group_co_io_limits_intercept", HOSTILE),
    )
    mutex = records.Mutex(
        address=0x55D000AA0010, owner=mine, owner_comm=HOSTILE, kind="normal", count=0, waiters=(mine,), place="heap"
    )
    case.locks = records.LockGraph(mutexes=(mutex,), others=(), cycles=((mine,),), notes=(HOSTILE,))
    case.parked((*e.MUTEX, "throttle_group_co_io_limits_intercept", "", HOSTILE), 2)
    case.parked((*e.YIELD, HOSTILE), 1)
    case.monitor(HOSTILE)
    case.disks(e.disk(HOSTILE, HOSTILE + "2", file=f"/srv/{HOSTILE}.qcow2", group=HOSTILE, bps=60_000_000))
    case.descriptors = {9: f"/srv/{HOSTILE}.qcow2"}
    case.mountinfo = "30 1 254:1 / /srv/<b>\\040x rw - ext4 /dev/<i> rw\n"
    case.log = f"EXT4-fs error: {HOSTILE}\n"
    case.vm_log = HOSTILE
    case.command_line = ("-name", HOSTILE)
    case.outcomes["host"] = ("Failed", HOSTILE)
    return case


def crowd(threads: int, coroutines: int) -> e.Case:
    """As many threads and coroutines as a big VM has, hardly two with the same stack."""
    case = e.Case()
    case.idle_threads(vcpus=16, iothreads=4)
    for number in range(threads):
        case.thread(
            5000 + number,
            "worker",
            state="D",
            syscall="18 0xb 0x0 0x0 0x0 0x0 0x0 0x0 0x0",
            stack=("percpu_rwsem_wait", "ext4_file_write_iter", "__x64_sys_pwrite64"),
            frames=tuple(f"bdrv_co_something_{(number * 7 + depth) % 401}" for depth in range(24)),
        )
    for number in range(coroutines):
        case.parked((*e.YIELD, *(f"blk_co_something_{(number * 3 + depth) % 997}" for depth in range(16))))
    case.monitor()
    case.disks(*(e.disk(f"d{number}", f"scsi{number}") for number in range(8)))
    return case
