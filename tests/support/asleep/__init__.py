"""A host that sleeps: a small Linux with a Python, this autopsy and a QEMU, all in memory."""
