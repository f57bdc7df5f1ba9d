"""Backtraces as people paste them, made of the least stacks that show each mechanism."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

MAIN = ("main_loop_wait", "qemu_main_loop", "main")
DISPATCH = (
    "aio_bh_call",
    "aio_bh_poll",
    "aio_dispatch",
    "aio_ctx_dispatch",
    "g_main_context_dispatch",
    "os_host_main_loop_wait",
    *MAIN,
)
STARTED = ("qemu_thread_start", "start_thread", "clone3")
POLL = ("__ppoll", "qemu_poll_ns", "fdmon_poll_wait", "aio_poll")
LOCK = (
    "futex_wait",
    "__GI___lll_lock_wait",
    "lll_mutex_lock_optimized",
    "___pthread_mutex_lock",
    "qemu_mutex_lock_impl",
)
LOCK_BQL = (*LOCK, "qemu_mutex_lock_iothread_impl")
IDLE_MAIN = ("__ppoll", "qemu_poll_ns", "os_host_main_loop_wait", *MAIN)
MMIO = (
    "memory_region_dispatch_write",
    "flatview_write",
    "address_space_write",
    "kvm_cpu_exec",
    "kvm_vcpu_thread_fn",
    *STARTED,
)


def frames(functions: Sequence[str]) -> list[str]:
    """Return a stack as gdb prints it."""
    return [
        f"#{number:<3} "
        + ("" if not number else f"0x{0x55D000000000 + number * 16:016x} in ")
        + f"{name} () at ../x.c:{number + 1}"
        for number, name in enumerate(functions)
    ]


def thread(number: int, tid: int, name: str, functions: Sequence[str]) -> str:
    """Return one thread's part of `thread apply all bt`."""
    header = f'Thread {number} (Thread 0x7f0000000{number:03x} (LWP {tid}) "{name}"):'
    return "\n".join([header, *frames(functions)])


def dump(*threads: tuple[str, Sequence[str]]) -> str:
    """Return a whole dump; the last one is the main thread, as gdb has it."""
    count = len(threads)
    numbered = ((count - place, 5000 + count - place, *each) for place, each in enumerate(threads))
    return "\n\n".join(thread(number, tid - 1, name, functions) for number, tid, name, functions in numbered) + "\n"


def coroutine(address: int, functions: Sequence[str]) -> str:
    """Return what `qemu coroutine` of qemu-gdb.py prints."""
    return "\n".join([f"(gdb) qemu coroutine {address:#x}", *frames(functions)]) + "\n"


def quoted(text: str) -> str:
    """Return a text as a mail quotes it."""
    return "".join(f"> > {line}\n" for line in text.splitlines())


def wrapped(text: str, width: int = 60) -> str:
    """Return a text as gdb wraps it at a narrow terminal: at blanks, and with four of them before the rest."""
    lines = []
    for line in text.splitlines():
        rest = line
        while len(rest) > width and " at " in rest:
            place = rest.rindex(" at ")
            lines.append(rest[:place])
            rest = "    " + rest[place + 1 :]
            break
        lines.append(rest)
    return "\n".join(lines) + "\n"


def coloured(text: str) -> str:
    """Return a text with gdb's colours and a terminal's line ends."""
    return "".join(
        line.replace(" in ", " in \x1b[33m").replace(" ()", "\x1b[m ()") + "\r\n" for line in text.splitlines()
    )


def paged(text: str) -> str:
    """Return a text with the pager's question every few lines."""
    prompt = "--Type <RET> for more, q to quit, c to continue without paging--"
    return "".join(f"{prompt if number % 5 == 4 else ''}{line}\n" for number, line in enumerate(text.splitlines()))


def in_markdown(text: str) -> str:
    """Return a text as an issue shows it."""
    return f"My VM hangs since this morning :(\n\n```\n{text}```\n\nAny idea? #12 says that it is *fixed*.\n"


def escaped(text: str) -> str:
    """Return a text as a web page's source has it."""
    return "<pre>" + text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;") + "</pre>\n"


def numbered(text: str) -> str:
    """Return a text as an editor shows it, with its lines' numbers before the frames."""
    return "".join(
        f"{number:>4}  {line}\n" if line.startswith("#") else f"{line}\n"
        for number, line in enumerate(text.splitlines(), 1)
    )


def with_journal(text: str) -> str:
    """Return the frames as the journal keeps them, each behind its head."""
    return "".join(
        f"Nov 29 10:00:00 pve1 gdb[4711]: {line}\n" if line.startswith("#") else f"{line}\n"
        for line in text.splitlines()
    )


def together(parts: Iterable[str]) -> str:
    """Return several pastes as one."""
    return "\n".join(parts)
