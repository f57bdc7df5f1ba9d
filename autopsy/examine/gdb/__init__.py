"""Runs gdb on a core, and reads what it prints."""
