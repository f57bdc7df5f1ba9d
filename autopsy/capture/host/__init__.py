"""Reads what the host knows around the VM."""
