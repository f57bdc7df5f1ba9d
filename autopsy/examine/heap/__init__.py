"""Walks QEMU's heap by its debug information."""
