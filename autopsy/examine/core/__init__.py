"""Reads an ELF core, its binaries and their symbols."""
