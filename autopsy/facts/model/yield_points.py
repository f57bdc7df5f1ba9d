"""The places where a coroutine yields: one row each, with its words, its layer, and whose requests can wait there."""

from __future__ import annotations

from enum import Enum, auto


class Layer(Enum):
    """The station of a request's path that a place belongs to; BESIDE is none of a disk's request."""

    THROTTLE = auto()
    BLOCK = auto()
    ENGINE = auto()
    PEER = auto()
    BESIDE = auto()


THROTTLE, BLOCK, ENGINE, PEER, BESIDE = Layer.THROTTLE, Layer.BLOCK, Layer.ENGINE, Layer.PEER, Layer.BESIDE
QCOW2 = ("qcow2",)
NBD = ("nbd",)


class Park(Enum):
    """Where a coroutine yielded.

    `words` follow "it" in a sentence. `drivers` are those of which a disk's chain must hold one for its requests to be
    able to wait there, none where that does not matter; `engine` is the aio= mode that it takes.
    """

    THROTTLE = ("waits in a throttle group", THROTTLE)
    THROTTLE_LOCK = ("waits for a throttle member's own lock, holding the group's", THROTTLE)
    DRAINED = ("is queued because its disk is drained", BLOCK)
    SERIALISING = ("waits for an overlapping request", BLOCK)
    FLUSH_QUEUE = ("waits for another flush to end", BLOCK)
    FLUSH = ("waits for its flush", ENGINE)
    GRAPH_LOCK = ("waits for the block graph lock", BLOCK)
    YIELD_TO_DRAIN = ("asked for a drain", BESIDE)
    BLKDEBUG = ("is suspended by blkdebug", BLOCK, ("blkdebug",))
    THREADS = ("waits for an AIO worker thread", ENGINE, (), "threads")
    LINUX_AIO = ("waits for Linux AIO", ENGINE, (), "native")
    IO_URING = ("waits for io_uring", ENGINE, (), "io_uring")
    NBD_REPLY = ("waits for an NBD server's reply", PEER, NBD)
    NBD_CONNECT = ("waits for a connection to an NBD server", PEER, NBD)
    NBD_SEND = ("waits to send to an NBD server", PEER, NBD)
    NBD_SLOT = ("waits for one of 16 NBD slots", PEER, NBD)
    RBD = ("waits for librbd", PEER, ("rbd",))
    ISCSI = ("waits for an iSCSI target", PEER, ("iscsi",))
    NFS = ("waits for an NFS server (libnfs)", PEER, ("nfs",))
    CURL = ("waits for an HTTP or FTP server", PEER, ("http", "https", "ftp", "ftps"))
    SSH = ("waits for an SSH server", PEER, ("ssh",))
    GLUSTER = ("waits for a Gluster volume", PEER, ("gluster",))
    BLKIO = ("waits for libblkio", PEER)
    NVME = ("waits for a userspace NVMe queue", PEER, ("nvme",))
    QCOW2_LOCK = ("waits for a qcow2 image's lock", BLOCK, QCOW2)
    QCOW2_DEPENDENCY = ("waits for another qcow2 allocation", BLOCK, QCOW2)
    QCOW2_THREADS = ("waits for a qcow2 crypto or compression thread", BLOCK, QCOW2)
    TASK_POOL = ("waits for a task of its pool", BLOCK)
    COPY_BEFORE_WRITE = ("waits until a backup has copied the old data", BLOCK, ("copy-before-write", "backup-top"))
    COPY_MEMORY = ("waits for block-copy memory", BESIDE)
    MIRROR = ("waits for a mirror's in-flight slot", BESIDE)
    JOB = ("is a job between two steps", BESIDE)
    SLEEP = ("sleeps for a time", BESIDE)
    MONITOR_IDLE = ("is the monitor, waiting for a question", BESIDE)
    QMP_COMMAND = ("runs a QMP command", BESIDE)
    MIGRATION = ("waits for migration data", BESIDE)
    PVE_BACKUP = ("waits for Proxmox backup", BESIDE)
    NBD_SERVER = ("serves an NBD client, waiting for a question", BESIDE)
    NBD_SERVER_SEND = ("waits until an NBD client takes its answer", BESIDE)
    GIVEN_UP = ("goes on for nobody: whoever asked for it has stopped waiting", BESIDE)
    DRIVER = ("waits inside a block driver whose name is not known", BLOCK)
    CO_MUTEX = ("waits for a coroutine mutex", BESIDE)
    OTHER = ("waits somewhere this analyzer does not know", BESIDE)

    __hash__ = (
        object.__hash__
    )  # an enum's own hashes the name anew each time, and sets of these are asked for at every turn

    def __init__(self, words: str, layer: Layer, drivers: tuple[str, ...] = (), engine: str = "") -> None:
        self.words = words
        self.layer = layer
        self.drivers = frozenset(drivers)
        self.engine = engine

    __hash__ = object.__hash__  # noqa: PIE794, PIE796 - a method: Enum's own calls Python's, and each is one object


def at(*layers: Layer) -> frozenset[Park]:
    """Return the places of some layers."""
    return frozenset(park for park in Park if park.layer in layers)


# Where a disk's own requests wait.
DISK_PARKS = at(THROTTLE, BLOCK, ENGINE, PEER)
THROTTLED = at(THROTTLE)
SERVED = at(PEER)
# With the drivers, or the aio= mode, that a disk's chain must hold for its requests to be able to wait there.
BY_DRIVER = frozenset(park for park in Park if park.drivers)
BY_ENGINE = frozenset(park for park in Park if park.engine)
# Who stands here stands behind another request, or behind whoever drains: that one's own place is the cause.
BEHIND = frozenset(
    {
        Park.SERIALISING,
        Park.FLUSH_QUEUE,
        Park.GRAPH_LOCK,
        Park.DRAINED,
        Park.QCOW2_LOCK,
        Park.QCOW2_DEPENDENCY,
        Park.TASK_POOL,
        Park.CO_MUTEX,
        Park.COPY_BEFORE_WRITE,
        Park.COPY_MEMORY,
        Park.MIRROR,
        Park.YIELD_TO_DRAIN,
    }
)
