"""Limits of QEMU's own and of the host: who waits at one, which of its locks, and what lets how much through."""
