"""Copies QEMU's heap, registers and stacks into a core, with a stop of a millisecond."""
