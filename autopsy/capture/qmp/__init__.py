"""Asks the VM's monitor."""
