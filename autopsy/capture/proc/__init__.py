"""Reads what /proc tells of the VM's process."""
