"""Tells which threads of a migration send or save state."""

from __future__ import annotations

from autopsy.bundle.syscalls import PEER_CALLS
from autopsy.diagnose.queries.threads import functions, looks
from autopsy.facts.model.facts import Role, ThreadFact

SENDING = (
    "qemu_fflush",
    "qio_channel_socket_writev",
    "qio_channel_file_writev",
    "qio_channel_writev",
    "qemu_put_buffer",
    "qemu_write_full",  # a dump's, whose thread has no name without debug-threads=on
)


SAVING = ("qemu_savevm_state", "save_snapshot", "bdrv_save_vmstate", "qemu_savevm_state_", "migration_completion")
HANDS_ON = (*SENDING, *SAVING)
CHARDEV = ("qemu_chr_", "fd_chr_", "tcp_chr_", "io_channel_send")  # they write to channels, too


def sends_state(thread: ThreadFact) -> bool:
    """Tell whether a thread is in a call that hands the VM's state on: of a migration, a dump or a snapshot."""
    if next((look.syscall.name for look in looks(thread) if look.syscall.name), "") not in PEER_CALLS:
        return False
    names = functions(thread)
    if thread.role is Role.MIGRATION:
        return True
    return any(name.startswith(HANDS_ON) for name in names) and not any(name.startswith(CHARDEV) for name in names)
