"""Where each piece of evidence lies inside a bundle."""

from __future__ import annotations

import re

MANIFEST = "manifest.json"
README = "README.txt"
CORE = "core"
REPORT = "report.html"
DIAGNOSIS = "diagnosis.json"
BINARY = "binary.zst"

# In a folder at work only, never in a bundle.
SCRATCH = "scratch"  # how folders begin that a step needs for a while

# How the folders of a capture end that is not sealed yet: NAME.<letters that nobody can guess>.work, and .partial.
WORK = ".work"
PARTIAL = ".partial"
_UNFINISHED = re.compile(r"(?:\.[0-9a-f]{8})?\.(?:work|partial)$")

WITNESS = "witness"
FREEZE = "freeze"
QUERY_STATUS = "qmp.query-status"
QUERY_BLOCK = "qmp.query-block"
THROTTLE_GROUPS = "qmp.throttle-groups"
GDB_THREADS = "gdb.threads"
PROC_STACKS = "proc.stacks"
PROC_FDS = "proc.fds"
PROC_AIO = "proc.aio"
HOST = "host"
SECOND_EXPOSURE = "second-exposure"
UNSTABLE = "qmp.unstable"  # of no capture but one with --ask-unstable

STEPS = (
    WITNESS,
    FREEZE,
    QUERY_STATUS,
    QUERY_BLOCK,
    THROTTLE_GROUPS,
    GDB_THREADS,
    PROC_STACKS,
    PROC_FDS,
    PROC_AIO,
    HOST,
    SECOND_EXPOSURE,
)

# No step: what was taken of a VM that had ended by itself.
END = "end"

# No step: what a watch had seen of the VM before the capture began, where one ran.
WATCH = "watch"

# No step: the files of an import as they were given, under numbers.
GIVEN = "given"

# Files inside evidence/<step>/.
TASKS = "tasks.txt"  # sections task/<tid>/{comm,stat,status,wchan,syscall,stack,schedstat}, and the process's own
FDS = "fds.txt"  # sections fd/<n> (the link), fdinfo/<n>, mountinfo
FUTEXES = "futexes.json"  # records.FutexWait[]
POLLS = "polls.json"  # records.PollSet[]
MAPS = "maps"
SMAPS = "smaps"  # in bundles of versions that still read it
CMDLINE = "cmdline"  # NUL-separated as the kernel gives it
AUXV = "auxv"
FREEZE_RECORD = "freeze.json"  # records.FreezeRecord
QMP = "qmp.jsonl"  # records.QmpExchange, one a line
GUARD = "guard.json"  # records.GuardLook, of a step that may block
BACKTRACE = "backtrace.txt"  # what gdb printed for `thread apply all bt`
THREADS = "threads.json"  # records.ThreadStack[]
COROUTINES = "coroutines.json"  # records.Coroutine[]
LEFT_OUT = "left-out.json"  # records.LeftOut[]: where a limit of ours bit; in files of sections it is `<name> (rest)`
COROUTINES_TEXT = "coroutines.txt"  # the same for eyes: identical stacks grouped, with their count
LOCKS = "locks.json"  # records.LockGraph
MAIN_LOOP = "main-loop.json"  # records.MainLoop
EVENTFDS = "eventfds.json"  # records.EventFd[]
WORKERS = "workers.json"  # records.Worker[]
MODULES = "modules.json"  # records.Module[]
HEAP = "heap.json"  # records.Heap
VIRTQUEUES = "virtqueues.json"  # heap_virtio.VirtioShapes
RING_WORDS = "ring-words.json"  # heap_virtio.RingsLook
GDB_LOG = "gdb.log"
SOCKETS = "sockets.txt"  # sections net/unix, net/tcp, net/tcp6, ss, peer/<pid>/{status,wchan,stack,…}, fuse/<minor>/…
SOCKET_ENDS = "sockets.json"  # records.SocketEnd[]
FIFO_OPENINGS = "fifo-openings.json"  # other_programs.FifoOpening[]; only where a thread waits in open(2) of one
PROCESS_WAITS = "process-waits.json"  # other_programs.ProcessWait[]; only where a thread waits for a process
SERVER_LINKS = "server-links.json"  # other_programs.ServerLink[]; only where the VM is a server's client
AIO = "aio.txt"  # sections sys/fs/aio-nr, sys/fs/aio-max-nr, io, status, and fdinfo/<n> of each io_uring
RINGS = "rings.json"  # records.Rings
HOST_FILES = "host.txt"  # sections named by their absolute path, and block-devices, statvfs <mount point>, dmsetup …
IMAGES = "images.txt"  # sections image/<n>: device, inode and name of each image whose name is no open file's own
DMESG = "dmesg.txt"
JOURNAL = "journal.txt"  # sections named by the journalctl that gave them
VM_CONFIG = "vm-config.txt"  # sections: domain XML or VMID.conf, redacted
VM_LOG = "vm.log"
RING = "ring.jsonl"  # ring.RingHeader, then ring.RingSample, one a line: the last minute
LEFT = "left-behind.txt"  # sections named by the VM's sockets and pidfile: `still there`, or why not
VM_TASKS = "vm-tasks.txt"  # sections: what the manager was told to do with the VM of late, newest first
RRD = "rrd"  # the manager's own record of the VM's load, from before the incident (rrdtool)


def evidence(step: str, file: str) -> str:
    """Return the path of a step's file inside the bundle."""
    return f"evidence/{step}/{file}"


def name_of(vm: str, utc: str) -> str:
    """Return `autopsy-<name>-<UTC time>`, whatever the guest's owner chose to call it."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", vm).strip("._-")[:60] or "vm"
    return f"autopsy-{plain}-{re.sub(r'[^0-9T]', '', utc[:19])}Z"


def of_folder(folder: str) -> str:
    """Return the name of the capture that a staging folder is of, without what its bundle does not bear."""
    return _UNFINISHED.sub("", folder)
