"""Reads files and programs that may never answer."""
