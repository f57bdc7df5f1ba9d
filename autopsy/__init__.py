"""Freezes the evidence of a wedged QEMU before anybody kills it."""

__version__ = "0.1.0"
