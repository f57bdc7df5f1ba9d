"""Reads backtraces that somebody pasted."""
