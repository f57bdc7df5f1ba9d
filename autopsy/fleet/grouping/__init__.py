"""Says which captures are of one kind, whatever build of QEMU they are of."""
