"""Leads from a word of the operator to one QEMU process."""
